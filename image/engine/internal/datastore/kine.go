// Package datastore keeps Kubernetes' objects: SQLite behind kine on one server, embedded etcd on several.
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"k8s.io/klog/v2"
)

// Running is a datastore that answers.
type Running struct {
	Endpoints []string
	// Volatile keeps what need not outlive the machine, in memory; empty where there is no such place.
	Volatile []string
	// CAFile, CertFile and KeyFile are empty where no network is between.
	CAFile, CertFile, KeyFile string
	// Several says that other servers may share it; Members then knows them.
	Several bool
	Members clientv3.Cluster
	own     uint64
	// reach says why the member at an address does not answer.
	reach func(ctx context.Context, address string) error
	stop  func()
}

// Stop ends it; the API server has to have ended before.
func (r *Running) Stop() { r.stop() }

// sqliteFile is kept in the folder server/db.
const sqliteFile = "state.db"

// What SQLite is told. A write is in the log before it is answered, and in the database at a checkpoint;
// a full vacuum at each start would write the whole database to the card.
const sqliteParameters = "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_kine_disable_startup_vacuum=1"

// HasSQLite says whether a folder has the database of a single server.
func HasSQLite(folder string) bool {
	_, err := os.Stat(filepath.Join(folder, sqliteFile))
	return err == nil
}

// What is told of a database in memory: there is no medium to wait for.
const volatileParameters = "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=OFF&_txlock=immediate&_kine_disable_startup_vacuum=1"

// StartKine serves the SQLite database of a folder on a unix socket that only root can open. `volatile`,
// if not empty, is a folder in memory for a second one.
//
// Each node, and the API server, renews a lease every 10 s. In the first database that is nearly all that is
// written at rest, and more than an SD card should bear.
func StartKine(folder, volatile string) (*Running, error) {
	socket, stop, err := serveSQLite(folder, sqliteParameters)
	if err != nil {
		return nil, err
	}
	made := &Running{Endpoints: []string{"unix://" + socket}, stop: stop}
	if volatile == "" {
		return made, nil
	}
	second, stopSecond, err := serveSQLite(volatile, volatileParameters)
	if err != nil {
		stop()
		return nil, err
	}
	made.Volatile = []string{"unix://" + second}
	made.stop = func() {
		stopSecond()
		stop()
	}
	return made, nil
}

// keepLogShort sees to it that SQLite's log can be taken into the database and begun anew, which nobody may
// do while somebody reads what was before it.
//
// As it opens a database, kine 0.16 asks for the number of rows in a table of its earliest releases and in its
// own; where the first has none, it never takes the second's answer, so this SQLite reads on for ever, and the
// log grows by all that is ever written. So the first table is there, with one row that says nothing: kine takes
// both answers, and what it then moves over, if its own is still empty, is no row.
func keepLogShort(file string) error {
	database, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		return err
	}
	defer database.Close()
	_, err = database.Exec("CREATE VIEW IF NOT EXISTS key_value AS SELECT NULL AS id, NULL AS name, NULL AS value, NULL AS ttl")
	return err
}

// serveSQLite returns the socket, and what ends it.
func serveSQLite(folder, parameters string) (string, func(), error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", nil, fmt.Errorf("making the folder of the database: %w", err)
	}
	if err := keepLogShort(filepath.Join(folder, sqliteFile)); err != nil {
		return "", nil, fmt.Errorf("preparing the database %s: %w", filepath.Join(folder, sqliteFile), err)
	}
	socket := filepath.Join(folder, "kine.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, fmt.Errorf("removing the old socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	_, backend, err := sqlite.New(ctx, &tasks, &drivers.Config{
		DataSourceName:        filepath.Join(folder, sqliteFile) + parameters,
		ConnectionPoolConfig:  generic.ConnectionPoolConfig{MaxIdle: 2},
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 5,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	})
	if err == nil {
		err = backend.Start(ctx)
	}
	if err != nil {
		cancel()
		return "", nil, fmt.Errorf("opening the database %s: %w", filepath.Join(folder, sqliteFile), err)
	}
	listener, err := net.Listen("unix", socket)
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		cancel()
		return "", nil, fmt.Errorf("listening on %s: %w", socket, err)
	}
	serving := grpc.NewServer(
		grpc.MaxRecvMsgSize(8<<20),
		grpc.MaxSendMsgSize(1<<31-1),
		// The API server's client asks every 30 s whether we live; gRPC takes more than one in
		// 5 minutes for an attack and hangs up.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	server.New(backend, "unix", 5*time.Second, "3.6.8").Register(serving)
	go func() {
		if err := serving.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			klog.Errorf("the database's server ended: %v", err)
		}
	}()
	return socket, func() {
		timer := time.AfterFunc(500*time.Millisecond, serving.Stop)
		serving.GracefulStop()
		timer.Stop()
		cancel()
		tasks.Wait()
	}, nil
}
