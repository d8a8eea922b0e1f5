package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

func authority(t *testing.T, folder string) *Authority {
	t.Helper()
	made, err := EnsureAuthority(folder, "server-ca", now)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestAnAuthorityIsMadeOnce(t *testing.T) {
	folder := t.TempDir()
	first := authority(t, folder)
	if !bytes.Equal(first.PEM, authority(t, folder).PEM) {
		t.Error("made anew")
	}
	info, err := os.Stat(filepath.Join(folder, "server-ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// A kill between key and certificate
	if err := os.Remove(filepath.Join(folder, "server-ca.crt")); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first.PEM, authority(t, folder).PEM) {
		t.Error("the certificate came back from nowhere")
	}
	// A lost key is never made up for
	if err := os.Remove(filepath.Join(folder, "server-ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureAuthority(folder, "server-ca", now); err == nil {
		t.Error("a certificate without its key passed")
	}
}

func TestALeafIsMadeAnewOnlyWhenItHasTo(t *testing.T) {
	folder := t.TempDir()
	ca := authority(t, folder)
	path := filepath.Join(folder, "leaf")
	leaf := Leaf{Name: "kube-apiserver", Server: true, Names: []string{"localhost", "box"}, Addresses: []string{"127.0.0.1", "fd00:0::1"}}
	ensure := func(ca *Authority, leaf Leaf, now time.Time) []byte {
		t.Helper()
		if err := ca.EnsureLeaf(path, leaf, now); err != nil {
			t.Fatal(err)
		}
		if _, err := tls.LoadX509KeyPair(path+".crt", path+".key"); err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(path + ".crt")
		return text
	}
	first := ensure(ca, leaf, now)
	leaf.Names = []string{"box", "localhost"}
	if !bytes.Equal(first, ensure(ca, leaf, now.Add(100*24*time.Hour))) {
		t.Error("made anew without need")
	}
	late := ensure(ca, leaf, now.Add(300*24*time.Hour))
	if bytes.Equal(first, late) {
		t.Error("not renewed before its end")
	}
	leaf.Addresses = append(leaf.Addresses, "10.0.0.1")
	more := ensure(ca, leaf, now.Add(300*24*time.Hour))
	if bytes.Equal(late, more) {
		t.Error("lacks the new address")
	}
	if bytes.Equal(more, ensure(authority(t, t.TempDir()), leaf, now)) {
		t.Error("of another CA")
	}
	leaf.Addresses = []string{"10.0.0"}
	if _, _, err := ca.Issue(leaf, now); err == nil {
		t.Error("a wrong address passed")
	}
}

func TestALeafVerifies(t *testing.T) {
	ca := authority(t, t.TempDir())
	text, _, err := ca.Issue(Leaf{Name: "x", Organisations: []string{"o"}, Names: []string{"box"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	client := x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := certificate.Verify(client); err != nil {
		t.Error(err)
	}
	client.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := certificate.Verify(client); err == nil {
		t.Error("a client's certificate is good for a server")
	}
}
