package server

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"skerry/engine/internal/config"
	"skerry/engine/internal/datastore"
)

const (
	volatileHome = "/run/skerry-engine"
	tmpfsMagic   = 0x01021994 // <linux/magic.h>
)

// Who lives at the moment, and what was told of it: the API servers' addresses, leases, events. Those who
// write them make them anew within seconds.
var volatileResources = []string{"/apiServerIPInfo", "/apiServerPeerIPInfo", "/events", "coordination.k8s.io/leases"}

// volatileFolder returns where a single server keeps these, or "" if there is no file system in memory. A
// restart of the engine finds them again; another cluster in the same data folder does not.
func volatileFolder(o *config.Options, serverCA []byte) string {
	if err := os.MkdirAll(volatileHome, 0o700); err != nil {
		klog.Warningf("leases and events go to the disk: %v", err)
		return ""
	}
	var where syscall.Statfs_t
	if err := syscall.Statfs(volatileHome, &where); err != nil || where.Type != tmpfsMagic {
		return ""
	}
	return filepath.Join(volatileHome, volatileName(o.DataDir, serverCA))
}

func volatileName(dataDir string, serverCA []byte) string {
	hash := sha256.New()
	hash.Write([]byte(dataDir + "\x00"))
	hash.Write(serverCA)
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

// volatileOverrides is what the API server is told of it.
func volatileOverrides(store *datastore.Running) string {
	var made []string
	for _, resource := range volatileResources {
		made = append(made, resource+"#"+strings.Join(store.Volatile, ";"))
	}
	return strings.Join(made, ",")
}
