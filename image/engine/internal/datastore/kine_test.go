package datastore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const leaseKey = "/registry/leases/kube-node-lease/one"

// values returns what the two databases have under a key, after writing it to the second.
func values(t *testing.T, running *Running, written string) (first, second string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	read := func(endpoints []string, put string) string {
		client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: quietLogger()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if put != "" {
			// As the API server creates objects: kine takes nothing else.
			made, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(leaseKey), "=", 0)).Then(clientv3.OpPut(leaseKey, put)).Commit()
			if err != nil || !made.Succeeded {
				t.Fatal(made, err)
			}
		}
		found, err := client.Get(ctx, leaseKey)
		if err != nil {
			t.Fatal(err)
		}
		if len(found.Kvs) == 0 {
			return ""
		}
		return string(found.Kvs[0].Value)
	}
	return read(running.Endpoints, ""), read(running.Volatile, written)
}

func TestWhatIsShortLivedIsKeptApart(t *testing.T) {
	folder := t.TempDir()
	kept, volatile := filepath.Join(folder, "kept"), filepath.Join(folder, "volatile")
	running, err := StartKine(kept, volatile)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Stop()
	if first, second := values(t, running, "alive"); first != "" || second != "alive" {
		t.Errorf("%q in the first, %q in the second", first, second)
	}
	for _, folder := range []string{kept, volatile} {
		if facts, err := os.Stat(folder); err != nil || facts.Mode().Perm() != 0o700 || !HasSQLite(folder) {
			t.Error(folder, facts, err)
		}
	}
}

func TestWithoutAPlaceInMemoryThereIsOneDatabase(t *testing.T) {
	running, err := StartKine(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer running.Stop()
	if len(running.Endpoints) != 1 || len(running.Volatile) != 0 {
		t.Error(running.Endpoints, running.Volatile)
	}
}

func TestTheLogIsTakenIntoTheDatabase(t *testing.T) {
	folder := t.TempDir()
	running, err := StartKine(folder, "")
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: running.Endpoints, DialTimeout: 10 * time.Second, Logger: quietLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	// Twice as much as SQLite lets its log grow to.
	const each, count = 32 << 10, 256
	for i := range count {
		key := fmt.Sprintf("/registry/configmaps/%d", i)
		put := clientv3.OpPut(key, strings.Repeat("x", each))
		if made, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(put).Commit(); err != nil || !made.Succeeded {
			t.Fatal(made, err)
		}
	}
	client.Close()
	size := func(name string) int64 {
		facts, err := os.Stat(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		return facts.Size()
	}
	if kept, log := size(sqliteFile), size(sqliteFile+"-wal"); kept < each*count/4 || log > 6<<20 {
		t.Errorf("%d bytes were written: %d are in the database, the log has %d", each*count, kept, log)
	}
	running.Stop()

	// Nobody reads on either: who did would keep the log from being cut as the database is opened.
	again, err := StartKine(folder, "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	if log := size(sqliteFile + "-wal"); log > 1<<20 {
		t.Errorf("opened anew, the log has %d bytes", log)
	}
}
