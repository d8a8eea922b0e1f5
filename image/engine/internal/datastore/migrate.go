package datastore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/klog/v2"
)

const (
	// etcd takes 128 operations and 1.5 MiB in one transaction.
	batchKeys  = 64
	batchBytes = 1 << 20
	everything = "/"
)

// Short-lived keys hang on leases, which do not move along; their owners write them anew.
var shortLived = []string{"/registry/events/", "/registry/masterleases/", "/registry/events.k8s.io/"}

// Migrate moves the objects of a single server's SQLite database into a new etcd member. It may be killed
// at any time: the new data counts only once it is whole, and the old database stays, under another name.
func Migrate(ctx context.Context, e Etcd) error {
	aside := e
	aside.Folder = filepath.Join(e.Folder, "migrating")
	if HasEtcd(e.Folder) {
		return finishMigration(e)
	}
	if err := os.RemoveAll(aside.Folder); err != nil {
		return err
	}
	klog.Infof("moving the datastore from SQLite to etcd")
	old, err := StartKine(e.Folder, "")
	if err != nil {
		return err
	}
	defer old.Stop()
	source, err := clientv3.New(clientv3.Config{Endpoints: old.Endpoints, DialTimeout: etcdCall, Logger: quietLogger()})
	if err != nil {
		return err
	}
	defer source.Close()
	failure := make(chan error, 1)
	name, err := aside.memberName()
	if err != nil {
		return err
	}
	made, err := aside.start(ctx, aside.config(name, name+"="+aside.peerURL(), embed.ClusterStateFlagNew), func(err error) {
		select {
		case failure <- err:
		default:
		}
	})
	if err != nil {
		return err
	}
	target, err := aside.client(made.Endpoints...)
	if err == nil {
		var count int
		if count, err = copyAll(ctx, source, target); err == nil {
			klog.Infof("%d objects moved", count)
		}
		target.Close()
	}
	made.Stop()
	if err != nil {
		return fmt.Errorf("moving the datastore to etcd: %w", err)
	}
	if err := os.Rename(filepath.Join(aside.Folder, "etcd.name"), filepath.Join(e.Folder, "etcd.name")); err != nil {
		return err
	}
	if err := os.Rename(aside.dataFolder(), e.dataFolder()); err != nil {
		return err
	}
	return finishMigration(e)
}

// finishMigration puts the old database out of the way; nothing is started on it again.
func finishMigration(e Etcd) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		old := filepath.Join(e.Folder, sqliteFile+suffix)
		if err := os.Rename(old, filepath.Join(e.Folder, "before-etcd.db"+suffix)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(e.Folder, "migrating"))
}

func copyAll(ctx context.Context, source, target *clientv3.Client) (int, error) {
	count, revision := 0, int64(0)
	var batch []clientv3.Op
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := target.Txn(ctx).Then(batch...).Commit()
		batch, size = nil, 0
		return err
	}
	for key := everything; ; {
		options := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(everything)), clientv3.WithLimit(500)}
		if revision > 0 {
			options = append(options, clientv3.WithRev(revision))
		}
		page, err := source.Get(ctx, key, options...)
		if err != nil {
			return count, fmt.Errorf("reading from %q: %w", key, err)
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, pair := range page.Kvs {
			key = string(pair.Key) + "\x00"
			if isShortLived(string(pair.Key)) {
				continue
			}
			if size+len(pair.Value) > batchBytes || len(batch) >= batchKeys {
				if err := flush(); err != nil {
					return count, fmt.Errorf("writing: %w", err)
				}
			}
			batch = append(batch, clientv3.OpPut(string(pair.Key), string(pair.Value)))
			size += len(pair.Value)
			count++
		}
		if !page.More || len(page.Kvs) == 0 {
			break
		}
	}
	return count, flush()
}

func isShortLived(key string) bool {
	for _, prefix := range shortLived {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	// kine's own health and compaction records
	return !strings.HasPrefix(key, "/registry/")
}
