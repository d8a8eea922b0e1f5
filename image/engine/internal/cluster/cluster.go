// Package cluster holds what every node has to know of its cluster. Servers publish it, agents keep a copy,
// so that a node starts its pods while no server answers.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Names of what servers publish, all in one namespace.
const (
	Namespace = "kube-system"
	ConfigMap = "skerry-cluster"
	key       = "cluster.json"
	// ServerSecret holds the cluster's keys, sealed; see package join.
	ServerSecret = "skerry-server-bootstrap"
	// Groups of those who join with a token.
	JoiningGroup = "system:bootstrappers:skerry"
	ServerGroup  = "system:bootstrappers:skerry-server"
)

// Facts are public.
type Facts struct {
	Version       int      `json:"version"`
	ClusterCIDRs  []string `json:"clusterCIDRs"`
	ServiceCIDRs  []string `json:"serviceCIDRs"`
	ClusterDNS    []string `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	NetworkPolicy bool     `json:"networkPolicy"`
	// ClientCA signs the certificates of those who may call a kubelet.
	ClientCA string `json:"clientCA"`
}

// Encode returns the data of the ConfigMap.
func (f Facts) Encode() (map[string]string, error) {
	f.Version = 1
	text, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return map[string]string{key: string(text)}, nil
}

// Decode reads the data of the ConfigMap.
func Decode(data map[string]string) (Facts, error) {
	return Parse([]byte(data[key]))
}

// Parse reads the JSON text.
func Parse(text []byte) (Facts, error) {
	var facts Facts
	if err := json.Unmarshal(text, &facts); err != nil {
		return facts, fmt.Errorf("what the server says of the cluster: %w", err)
	}
	if facts.Version != 1 {
		return facts, fmt.Errorf("what the server says of the cluster has version %d, this engine knows 1: update this node", facts.Version)
	}
	if facts.ClientCA == "" || len(facts.ClusterDNS) == 0 || len(facts.ClusterCIDRs) == 0 {
		return facts, errors.New("what the server says of the cluster is incomplete")
	}
	return facts, nil
}
