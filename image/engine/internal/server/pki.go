// Package server runs a server: datastore, API server, controllers, scheduler, and what keeps the cluster's
// own objects.
package server

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"skerry/engine/internal/certs"
	"skerry/engine/internal/config"
	"skerry/engine/internal/files"
	"skerry/engine/internal/kubeconfig"
)

// pki is the folder server/tls.
type pki struct {
	folder string
	// serving signs API servers, client those who call them, kubelets the kubelets' own servers (a node
	// that lies about its addresses gets no certificate that others take for the API server's),
	// front the aggregation layer, etcd the members of the datastore.
	serving, client, kubelets, front, etcd *certs.Authority
}

var authorities = []string{"server-ca", "client-ca", "kubelet-ca", "front-proxy-ca", "etcd-ca"}

// sharedFiles are the same on every server of a cluster.
func sharedFiles() []string {
	names := []string{"service.key"}
	for _, name := range authorities {
		names = append(names, name+".crt", name+".key")
	}
	return names
}

func (p *pki) file(name string) string { return filepath.Join(p.folder, name) }

func ensurePKI(folder string, now time.Time) (*pki, error) {
	made := &pki{folder: folder}
	for i, place := range []**certs.Authority{&made.serving, &made.client, &made.kubelets, &made.front, &made.etcd} {
		authority, err := certs.EnsureAuthority(folder, authorities[i], now)
		if err != nil {
			return nil, err
		}
		*place = authority
	}
	if _, err := os.Stat(made.file("service.key")); errors.Is(err, os.ErrNotExist) {
		key, err := certs.NewKey()
		if err != nil {
			return nil, err
		}
		// In the one form of which Kubernetes takes the public half too
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		return made, files.Write(made.file("service.key"), text, 0o600)
	}
	return made, nil
}

// leaves makes the certificates of this server's components, and the administrator's. The latter is of a
// group that has its rights by a binding: those of `system:masters` could never be taken back.
func (p *pki) leaves(o *config.Options, administrators string, now time.Time) error {
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + o.ClusterDomain, "localhost", o.NodeName}
	addresses := append([]string{"127.0.0.1", "::1"}, o.NodeIPs...)
	addresses = append(addresses, o.FirstServiceIPs()...)
	for _, more := range append([]string{o.AdvertiseAddress, o.BindAddress}, o.TLSSANs...) {
		if isAddress(more) {
			addresses = append(addresses, more)
		} else if more != "" {
			names = append(names, more)
		}
	}
	slices.Sort(names)
	slices.Sort(addresses)
	for file, wanted := range map[string]struct {
		by   *certs.Authority
		leaf certs.Leaf
	}{
		"kube-apiserver":         {p.serving, certs.Leaf{Name: "kube-apiserver", Server: true, Names: slices.Compact(names), Addresses: slices.Compact(addresses)}},
		"kube-apiserver-kubelet": {p.client, certs.Leaf{Name: kubeletClient}},
		"front-proxy":            {p.front, certs.Leaf{Name: "front-proxy-client"}},
		"admin":                  {p.client, certs.Leaf{Name: "system:admin", Organisations: []string{administrators}}},
		"engine":                 {p.client, certs.Leaf{Name: "skerry:engine", Organisations: []string{"system:masters"}}},
		"controller-manager":     {p.client, certs.Leaf{Name: "system:kube-controller-manager"}},
		"scheduler":              {p.client, certs.Leaf{Name: "system:kube-scheduler"}},
	} {
		if err := wanted.by.EnsureLeaf(p.file(file), wanted.leaf, now); err != nil {
			return err
		}
	}
	return nil
}

// kubeletClient is the API server towards kubelets; bootstrap objects bind it.
const kubeletClient = "skerry:kube-apiserver"

// kubeconfigFor returns the path of a kubeconfig for one of the components inside this process.
func (p *pki) kubeconfigFor(component, server string) (string, error) {
	path := p.file(component + ".kubeconfig")
	return path, kubeconfig.Write(path, 0o600, kubeconfig.Config{
		Server: server, CA: p.serving.PEM,
		CertificateFile: p.file(component + ".crt"), KeyFile: p.file(component + ".key"),
	})
}

// writeAdmin writes the administrator's kubeconfig, which holds its credentials.
func (p *pki) writeAdmin(o *config.Options, server string) error {
	certificate, err := os.ReadFile(p.file("admin.crt"))
	if err != nil {
		return fmt.Errorf("reading the administrator's certificate: %w", err)
	}
	key, err := os.ReadFile(p.file("admin.key"))
	if err != nil {
		return fmt.Errorf("reading the administrator's key: %w", err)
	}
	return kubeconfig.Write(o.Kubeconfig, o.KubeconfigMode, kubeconfig.Config{
		Server: server, CA: p.serving.PEM, CertificateData: certificate, KeyData: key,
	})
}
