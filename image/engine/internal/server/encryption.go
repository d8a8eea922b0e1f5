package server

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"skerry/engine/internal/config"
	"skerry/engine/internal/datastore"
	"skerry/engine/internal/files"
)

// encryptionFile is k3s's name, in its folder server/cred; what is in it has its format too.
const encryptionFile = "encryption-config.json"

const encryptionKeySize = 32

// ensureEncryption returns the configuration by which the API server encrypts Secrets in the datastore,
// or nothing where they are not encrypted.
//
// The key is made with the cluster and held by all its servers for its life: a cluster that has data
// already goes on as it began, since nothing would tell its other servers, or an earlier release that a
// failed update brings back, of a new key. What is encrypted stays readable whatever the option says.
func ensureEncryption(o *config.Options) (string, error) {
	path := o.ServerDir("cred", encryptionFile)
	if _, err := os.Stat(path); err == nil {
		if !o.SecretsEncryption {
			klog.Infof("Secrets are encrypted with the key of %s: it was made with the cluster", path)
		}
		return path, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("the key of Secrets: %w", err)
	}
	if !o.SecretsEncryption {
		return "", nil
	}
	if folder := o.ServerDir("db"); o.Join != "" || datastore.HasSQLite(folder) || datastore.HasEtcd(folder) {
		klog.Warning("option \"secrets-encryption\": this cluster was founded without; its Secrets stay as they are, in clear")
		return "", nil
	}
	text, err := newEncryption()
	if err != nil {
		return "", err
	}
	return path, files.Write(path, text, 0o600)
}

// newEncryption returns a configuration with a new key. Nothing in clear is taken for a Secret.
func newEncryption() ([]byte, error) {
	type object = map[string]any
	key := make([]byte, encryptionKeySize)
	rand.Read(key) // cannot fail since Go 1.24
	named := object{"name": "secretbox-1", "secret": base64.StdEncoding.EncodeToString(key)}
	text, err := json.Marshal(object{
		"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
		"resources": []object{{
			"resources": []string{"secrets"},
			"providers": []object{{"secretbox": object{"keys": []object{named}}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("making the key of Secrets: %w", err)
	}
	return text, nil
}
