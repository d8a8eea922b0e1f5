package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"skerry/engine/internal/certs"
	"skerry/engine/internal/cluster"
	"skerry/engine/internal/config"
	"skerry/engine/internal/datastore"
	"skerry/engine/internal/files"
	"skerry/engine/internal/join"
	"skerry/engine/internal/token"
)

const (
	sealedKey   = "sealed"
	sealPurpose = "server bootstrap v1"
)

// bundle is what a joining server gets: the files that all servers share. The key of Secrets is among
// them, if the cluster was founded with one.
type bundle map[string][]byte

// sharedPath is where a server keeps a file of the bundle.
func sharedPath(o *config.Options, name string) string {
	if name == encryptionFile {
		return o.ServerDir("cred", name)
	}
	return o.ServerDir("tls", name)
}

func readBundle(o *config.Options) (bundle, error) {
	made := bundle{}
	for _, name := range append(sharedFiles(), encryptionFile) {
		content, err := os.ReadFile(sharedPath(o, name))
		if name == encryptionFile && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading what servers share: %w", err)
		}
		made[name] = content
	}
	return made, nil
}

// publish keeps the cluster's keys where a joining server finds them, sealed with the server token: a
// reader of the API, of the datastore or of its backups, has nothing without it.
func publish(ctx context.Context, client kubernetes.Interface, keys token.Keys, o *config.Options) error {
	shared, err := readBundle(o)
	if err != nil {
		return err
	}
	store := client.CoreV1().Secrets(cluster.Namespace)
	old, err := store.Get(ctx, cluster.ServerSecret, meta.GetOptions{})
	if err == nil {
		if kept, err := openBundle(keys, old); err == nil && maps.EqualFunc(kept, shared, slices.Equal) {
			return nil
		}
	} else if !apierrors.IsNotFound(err) {
		return err
	}
	plain, err := json.Marshal(shared)
	if err != nil {
		return err
	}
	sealed, err := keys.Seal(sealPurpose, plain)
	if err != nil {
		return err
	}
	wanted := applycore.Secret(cluster.ServerSecret, cluster.Namespace).WithData(map[string][]byte{sealedKey: sealed})
	_, err = store.Apply(ctx, wanted, force)
	return err
}

func openBundle(keys token.Keys, secret *core.Secret) (bundle, error) {
	plain, err := keys.Open(sealPurpose, secret.Data[sealedKey])
	if err != nil {
		return nil, err
	}
	var opened bundle
	if err := json.Unmarshal(plain, &opened); err != nil {
		return nil, err
	}
	for _, name := range sharedFiles() {
		if len(opened[name]) == 0 {
			return nil, fmt.Errorf("%s is missing", name)
		}
	}
	return opened, nil
}

// receive gets the cluster's keys from the server of the option, once.
func receive(ctx context.Context, o *config.Options) error {
	parsed, err := token.Parse(o.Token)
	if err != nil {
		return fmt.Errorf("option \"token\": %w", err)
	}
	folder := o.ServerDir("tls")
	if ca, err := os.ReadFile(filepath.Join(folder, "joined")); err == nil {
		if parsed.CAHash != "" && strings.TrimSpace(string(ca)) != parsed.CAHash {
			return fmt.Errorf("this server is of another cluster than the token's: its CA is %s; to join that one, remove %s", strings.TrimSpace(string(ca)), o.ServerDir())
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, "server-ca.crt")); err == nil && (datastore.HasSQLite(o.ServerDir("db")) || datastore.HasEtcd(o.ServerDir("db"))) {
		return fmt.Errorf("this server has founded a cluster of its own; to join %s, remove %s", o.Join, o.ServerDir())
	}
	member, err := join.Introduce(ctx, o.Join, parsed, token.Server)
	if err != nil {
		return err
	}
	keys, err := token.Derive(parsed.Secret)
	if err != nil {
		return err
	}
	opened, err := fetchBundle(ctx, member, keys, o)
	if err != nil {
		return err
	}
	if string(opened["server-ca.crt"]) != string(member.CA) {
		return fmt.Errorf("the keys that %s gave are not of the CA that the token proves", o.Join)
	}
	for name, content := range opened {
		if name != encryptionFile && !slices.Contains(sharedFiles(), name) {
			continue
		}
		mode := os.FileMode(0o600)
		if filepath.Ext(name) == ".crt" {
			mode = 0o644
		}
		if err := files.Write(sharedPath(o, name), content, mode); err != nil {
			return err
		}
	}
	// Only now are the keys there whole.
	return files.Write(filepath.Join(folder, "joined"), []byte(token.HashCA(member.CA)+"\n"), 0o600)
}

func fetchBundle(ctx context.Context, member *join.Member, keys token.Keys, o *config.Options) (bundle, error) {
	for attempt := 0; ; attempt++ {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		opened, err := tryFetch(limited, member, keys, o)
		cancel()
		var wrong *mismatch
		if err == nil || asMismatch(err, &wrong) {
			return opened, err
		}
		if attempt%10 == 0 {
			klog.Warningf("asking %s for what servers share (only one started with cluster-init has it): %v; trying again", o.Join, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

func tryFetch(ctx context.Context, member *join.Member, keys token.Keys, o *config.Options) (bundle, error) {
	facts, err := member.Client.CoreV1().ConfigMaps(cluster.Namespace).Get(ctx, cluster.ConfigMap, meta.GetOptions{})
	if err != nil {
		return nil, err
	}
	theirs, err := cluster.Decode(facts.Data)
	if err != nil {
		return nil, err
	}
	if err := sameFacts(factsOf(o, ""), theirs); err != nil {
		return nil, err
	}
	secret, err := member.Client.CoreV1().Secrets(cluster.Namespace).Get(ctx, cluster.ServerSecret, meta.GetOptions{})
	if err != nil {
		return nil, err
	}
	return openBundle(keys, secret)
}

// mismatch is an option that has to be the same on all servers.
type mismatch struct{ text string }

func (m *mismatch) Error() string { return m.text }

func asMismatch(err error, target **mismatch) bool {
	found, ok := err.(*mismatch)
	*target = found
	return ok
}

func sameFacts(ours, theirs cluster.Facts) error {
	for _, one := range []struct{ name, ours, theirs string }{
		{"cluster-cidr", fmt.Sprint(ours.ClusterCIDRs), fmt.Sprint(theirs.ClusterCIDRs)},
		{"service-cidr", fmt.Sprint(ours.ServiceCIDRs), fmt.Sprint(theirs.ServiceCIDRs)},
		{"cluster-dns", fmt.Sprint(ours.ClusterDNS), fmt.Sprint(theirs.ClusterDNS)},
		{"cluster-domain", ours.ClusterDomain, theirs.ClusterDomain},
		{"disable-network-policy", fmt.Sprint(!ours.NetworkPolicy), fmt.Sprint(!theirs.NetworkPolicy)},
	} {
		if one.ours != one.theirs {
			return &mismatch{fmt.Sprintf("option %q has to be as on the cluster's other servers: %s there, %s here", one.name, one.theirs, one.ours)}
		}
	}
	return nil
}

// openStore starts what keeps the objects: the member that is there, a new one of a cluster to join or to
// found, or the database of a single server.
func openStore(ctx context.Context, o *config.Options, p *pki, failed func(error)) (*datastore.Running, error) {
	folder := o.ServerDir("db")
	if !datastore.HasEtcd(folder) && o.Join == "" && !o.ClusterInit {
		return datastore.StartKine(folder, volatileFolder(o, p.serving.PEM))
	}
	for name, leaf := range map[string]certs.Leaf{
		"etcd":        {Name: "etcd", Server: true, Names: []string{"localhost", o.NodeName}, Addresses: append([]string{"127.0.0.1", "::1"}, o.NodeIPs...)},
		"etcd-client": {Name: "skerry:etcd-client"},
	} {
		if err := p.etcd.EnsureLeaf(p.file(name), leaf, time.Now()); err != nil {
			return nil, err
		}
	}
	member := datastore.Etcd{
		Folder: folder, NodeName: o.NodeName, Address: o.NodeIPs[0], CAFile: p.file("etcd-ca.crt"),
		CertFile: p.file("etcd.crt"), KeyFile: p.file("etcd.key"),
		ClientCertFile: p.file("etcd-client.crt"), ClientKeyFile: p.file("etcd-client.key"),
	}
	if datastore.HasSQLite(folder) {
		if err := datastore.Migrate(ctx, member); err != nil {
			return nil, err
		}
	}
	if !datastore.HasEtcd(folder) && o.Join != "" {
		seed, err := url.Parse(o.Join)
		if err != nil {
			return nil, err
		}
		return datastore.JoinEtcd(ctx, member, seed.Hostname(), failed)
	}
	return datastore.StartEtcd(ctx, member, failed)
}
