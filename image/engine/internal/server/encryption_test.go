package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry/engine/internal/config"
)

func server(t *testing.T, encrypt bool) *config.Options {
	t.Helper()
	return &config.Options{DataDir: t.TempDir(), SecretsEncryption: encrypt}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAKeyIsMadeWithTheClusterAndKept(t *testing.T) {
	o := server(t, true)
	path, err := ensureEncryption(o)
	if err != nil || path != o.ServerDir("cred", "encryption-config.json") {
		t.Fatal(path, err)
	}
	first, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(first), "secretbox") {
		t.Fatal(string(first), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	// What is encrypted stays so, whatever the option says later.
	o.SecretsEncryption = false
	put(t, o.ServerDir("db", "state.db"), "")
	if again, err := ensureEncryption(o); err != nil || again != path {
		t.Fatal(again, err)
	}
	if second, err := os.ReadFile(path); err != nil || string(second) != string(first) {
		t.Fatal("the key changed", err)
	}
	other, err := newEncryption()
	if err != nil || string(other) == string(first) {
		t.Fatal("two clusters have one key", err)
	}
}

func TestAClusterThatIsThereGoesOnAsItBegan(t *testing.T) {
	sqlite, joining, unasked := server(t, true), server(t, true), server(t, false)
	put(t, sqlite.ServerDir("db", "state.db"), "")
	joining.Join = "https://10.0.0.1:6443"
	for name, o := range map[string]*config.Options{"with data": sqlite, "joining one without": joining, "not asked to": unasked} {
		if path, err := ensureEncryption(o); err != nil || path != "" {
			t.Error(name, path, err)
		}
	}
}

func TestTheBundleHoldsTheKeyOfSecretsIfThereIsOne(t *testing.T) {
	o := server(t, true)
	for _, name := range sharedFiles() {
		put(t, sharedPath(o, name), name)
	}
	without, err := readBundle(o)
	if err != nil || len(without) != len(sharedFiles()) {
		t.Fatal(without, err)
	}
	if _, err := ensureEncryption(o); err != nil {
		t.Fatal(err)
	}
	with, err := readBundle(o)
	if err != nil || len(with[encryptionFile]) == 0 {
		t.Fatal(with, err)
	}
}
