package server

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"skerry/engine/internal/cluster"
	"skerry/engine/internal/token"
)

func TestWhatServersShareNeedsTheServersSecret(t *testing.T) {
	o := server(t, true)
	if _, err := ensurePKI(o.ServerDir("tls"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureEncryption(o); err != nil {
		t.Fatal(err)
	}
	shared, err := readBundle(o)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := token.Derive("the servers' secret")
	if err != nil {
		t.Fatal(err)
	}
	seal := func(content bundle) *core.Secret {
		plain, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := keys.Seal(sealPurpose, plain)
		if err != nil {
			t.Fatal(err)
		}
		return &core.Secret{Data: map[string][]byte{sealedKey: sealed}}
	}
	secret := seal(shared)
	if strings.Contains(string(secret.Data[sealedKey]), "PRIVATE") {
		t.Error("a key is readable")
	}
	opened, err := openBundle(keys, secret)
	if err != nil || len(opened) != len(sharedFiles())+1 {
		t.Fatalf("%d files, %v", len(opened), err)
	}
	key, _ := os.ReadFile(o.ServerDir("tls", "client-ca.key"))
	if string(opened["client-ca.key"]) != string(key) {
		t.Error("not the key")
	}
	agents, err := token.Derive("the agents' secret")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openBundle(agents, secret); err == nil {
		t.Error("the agents' secret opens it")
	}
	delete(shared, "service.key")
	if _, err := openBundle(keys, seal(shared)); err == nil || !strings.Contains(err.Error(), "service.key") {
		t.Errorf("incomplete: %v", err)
	}
}

func TestAnOptionThatDiffersIsNamed(t *testing.T) {
	facts := cluster.Facts{ClusterCIDRs: []string{"10.42.0.0/16"}, ServiceCIDRs: []string{"10.43.0.0/16"}, ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local", NetworkPolicy: true}
	if err := sameFacts(facts, facts); err != nil {
		t.Error(err)
	}
	other := facts
	other.ClusterDomain = "example.org"
	var wrong *mismatch
	if err := sameFacts(facts, other); !asMismatch(err, &wrong) || !strings.Contains(err.Error(), `"cluster-domain"`) || !strings.Contains(err.Error(), "example.org") {
		t.Errorf("got %v", err)
	}
}
