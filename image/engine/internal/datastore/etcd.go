package datastore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"

	"skerry/engine/internal/files"
)

const (
	clientPort = "2379"
	peerPort   = "2380"
	// SD cards may take long to write: a slow leader is better than a new election.
	heartbeat = 500 * time.Millisecond
	election  = 5 * time.Second
	etcdCall  = 10 * time.Second
	// Slower ones are told in the log.
	slowRequest = 2 * time.Second
)

// Etcd says where a member keeps its data and who it is.
type Etcd struct {
	Folder   string // server/db
	NodeName string
	Address  string
	// Files of the etcd CA and of certificates that it signed: for serving and peers, and for clients.
	CAFile, CertFile, KeyFile, ClientCertFile, ClientKeyFile string
}

func (e Etcd) dataFolder() string { return filepath.Join(e.Folder, "etcd") }

// HasEtcd says whether a folder has the data of a member.
func HasEtcd(folder string) bool {
	_, err := os.Stat(filepath.Join(folder, "etcd", "member", "wal"))
	return err == nil
}

// MemberPrefix is what the names of a node's members begin with.
func MemberPrefix(nodeName string) string { return nodeName + "-" }

// memberName is kept, and new with new data: a member that lost its data is another one.
func (e Etcd) memberName() (string, error) {
	path := filepath.Join(e.Folder, "etcd.name")
	if HasEtcd(e.Folder) {
		kept, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("the name of the etcd member: %w", err)
		}
		return strings.TrimSpace(string(kept)), nil
	}
	random := make([]byte, 4)
	rand.Read(random)
	name := MemberPrefix(e.NodeName) + hex.EncodeToString(random)
	return name, files.Write(path, []byte(name+"\n"), 0o600)
}

func endpoint(address, port string) url.URL {
	return url.URL{Scheme: "https", Host: net.JoinHostPort(address, port)}
}

func (e Etcd) peerURL() string { found := endpoint(e.Address, peerPort); return found.String() }

func (e Etcd) loopback() string {
	if strings.Contains(e.Address, ":") {
		return "::1"
	}
	return "127.0.0.1"
}

func (e Etcd) config(name, cluster, state string) *embed.Config {
	config := embed.NewConfig()
	config.Name = name
	config.Dir = e.dataFolder()
	config.InitialCluster = cluster
	config.ClusterState = state
	config.InitialClusterToken = "skerry"
	config.ListenPeerUrls = []url.URL{endpoint(e.Address, peerPort)}
	config.AdvertisePeerUrls = []url.URL{endpoint(e.Address, peerPort)}
	config.ListenClientUrls = []url.URL{endpoint(e.loopback(), clientPort), endpoint(e.Address, clientPort)}
	config.AdvertiseClientUrls = []url.URL{endpoint(e.Address, clientPort)}
	secure := transport.TLSInfo{CertFile: e.CertFile, KeyFile: e.KeyFile, TrustedCAFile: e.CAFile, ClientCertAuth: true, SkipClientSANVerify: true}
	config.ClientTLSInfo, config.PeerTLSInfo = secure, secure
	config.TickMs, config.ElectionMs = uint(heartbeat.Milliseconds()), uint(election.Milliseconds())
	config.EnableGRPCGateway = false
	config.WarningUnaryRequestDuration = slowRequest
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietLogger())
	return config
}

func quietLogger() *zap.Logger {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(encoder), zapcore.Lock(os.Stderr), zapcore.WarnLevel)).Named("etcd")
}

// StartEtcd starts a member that has data, or founds a cluster of one.
func StartEtcd(ctx context.Context, e Etcd, failed func(error)) (*Running, error) {
	name, err := e.memberName()
	if err != nil {
		return nil, err
	}
	return e.start(ctx, e.config(name, name+"="+e.peerURL(), embed.ClusterStateFlagNew), failed)
}

// JoinEtcd makes this machine a member of the cluster of `seed`, another server's address.
func JoinEtcd(ctx context.Context, e Etcd, seed string, failed func(error)) (*Running, error) {
	name, err := e.memberName()
	if err != nil {
		return nil, err
	}
	// What is there without a log is of an attempt that was broken off.
	if err := os.RemoveAll(e.dataFolder()); err != nil {
		return nil, err
	}
	found := endpoint(seed, clientPort)
	client, err := e.client(found.String())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var cluster string
	for attempt := 0; ; attempt++ {
		if cluster, err = e.addSelf(ctx, client, name); err == nil {
			break
		}
		// One learner at a time, and none while a member is away: others may be joining.
		if attempt%10 == 0 {
			klog.Warningf("joining the datastore of %s: %v; trying again", seed, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
	return e.start(ctx, e.config(name, cluster, embed.ClusterStateFlagExisting), failed)
}

// addSelf adds this machine as a learner and returns the list of members that it starts with. What was
// at its address before is gone: it never started, or its data is lost.
func (e Etcd) addSelf(ctx context.Context, client *clientv3.Client, name string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, etcdCall)
	defer cancel()
	listed, err := client.MemberList(limited)
	if err != nil {
		return "", err
	}
	for _, member := range listed.Members {
		if slices.Contains(member.PeerURLs, e.peerURL()) {
			klog.Infof("the datastore's member %q was at this address before; it goes", member.Name)
			if _, err := client.MemberRemove(limited, member.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
				return "", fmt.Errorf("removing the member that was at %s before: %w", e.peerURL(), err)
			}
		}
	}
	added, err := client.MemberAddAsLearner(limited, []string{e.peerURL()})
	if err != nil {
		return "", err
	}
	var all []string
	for _, member := range added.Members {
		memberName := member.Name
		if member.ID == added.Member.ID {
			memberName = name
		}
		for _, peer := range member.PeerURLs {
			all = append(all, memberName+"="+peer)
		}
	}
	return strings.Join(all, ","), nil
}

func (e Etcd) client(endpoints ...string) (*clientv3.Client, error) {
	secure := transport.TLSInfo{CertFile: e.ClientCertFile, KeyFile: e.ClientKeyFile, TrustedCAFile: e.CAFile}
	config, err := secure.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("the datastore's certificates: %w", err)
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, DialTimeout: etcdCall, Logger: quietLogger()})
}

func (e Etcd) start(ctx context.Context, config *embed.Config, failed func(error)) (*Running, error) {
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, err
	}
	member, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	go func() {
		select {
		case err := <-member.Err():
			failed(fmt.Errorf("etcd: %w", err))
		case <-member.Server.StopNotify():
			failed(fmt.Errorf("etcd ended: was this server removed from the cluster? To join again, remove %s", config.Dir))
		case <-ctx.Done():
		}
	}()
	local := endpoint(e.loopback(), clientPort)
	client, err := e.client(local.String())
	if err != nil {
		member.Close()
		return nil, err
	}
	if err := e.voting(ctx, client, member); err != nil {
		client.Close()
		member.Close()
		return nil, err
	}
	return &Running{
		Endpoints: []string{local.String()}, CAFile: e.CAFile, CertFile: e.ClientCertFile, KeyFile: e.ClientKeyFile,
		Members: client.Cluster, Several: true, own: uint64(member.Server.MemberID()),
		reach: func(ctx context.Context, address string) error {
			_, err := client.Status(ctx, address)
			return err
		},
		stop: func() {
			client.Close()
			member.Close()
		},
	}, nil
}

// voting returns when this member has a leader and a vote.
func (e Etcd) voting(ctx context.Context, client *clientv3.Client, member *embed.Etcd) error {
	for attempt := 0; ; attempt++ {
		err := promote(ctx, e, client, member)
		if err == nil {
			return nil
		}
		if attempt%20 == 10 {
			klog.Warningf("waiting for the datastore: %v", err)
		}
		select {
		case <-member.Server.StopNotify():
			return fmt.Errorf("etcd ended: was this server removed from the cluster? To join again, remove %s", e.dataFolder())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func promote(ctx context.Context, e Etcd, client *clientv3.Client, own *embed.Etcd) error {
	limited, cancel := context.WithTimeout(ctx, etcdCall)
	defer cancel()
	// A learner answers this, and little else.
	status, err := client.Status(limited, client.Endpoints()[0])
	if err != nil {
		return err
	}
	if status.Leader == 0 {
		return errors.New("no leader")
	}
	if !status.IsLearner {
		_, err := client.Get(limited, everything, clientv3.WithCountOnly())
		return err
	}
	leader := own.Server.Cluster().Member(types.ID(status.Leader))
	if leader == nil || len(leader.ClientURLs) == 0 {
		return errors.New("the leader's address is not known yet")
	}
	voter, err := e.client(leader.ClientURLs...)
	if err != nil {
		return err
	}
	defer voter.Close()
	_, err = voter.MemberPromote(limited, uint64(own.Server.MemberID()))
	return err
}

// nodeOf returns the name of the node that a member's name is made from.
func nodeOf(memberName string) (string, bool) {
	cut := len(memberName) - 8
	if cut < 2 || memberName[cut-1] != '-' {
		return "", false
	}
	return memberName[:cut-1], true
}

// Others returns the names of the nodes that have members, without this one. Members that were added and
// never started have no name yet.
func (r *Running) Others(ctx context.Context) ([]string, error) {
	limited, cancel := context.WithTimeout(ctx, etcdCall)
	defer cancel()
	listed, err := r.Members.MemberList(limited)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, member := range listed.Members {
		if name, ok := nodeOf(member.Name); ok && member.ID != r.own {
			names = append(names, name)
		}
	}
	return names, nil
}

// Answers says whether a node's member does; one that cannot be looked for does.
func (r *Running) Answers(ctx context.Context, nodeName string) bool {
	limited, cancel := context.WithTimeout(ctx, etcdCall)
	defer cancel()
	listed, err := r.Members.MemberList(limited)
	if err != nil {
		return true
	}
	for _, member := range listed.Members {
		if name, ok := nodeOf(member.Name); !ok || name != nodeName {
			continue
		}
		for _, address := range member.ClientURLs {
			if r.reach(limited, address) == nil {
				return true
			}
		}
	}
	return false
}

// RemoveMembers removes the members of a node that is no more.
func (r *Running) RemoveMembers(ctx context.Context, nodeName string) error {
	limited, cancel := context.WithTimeout(ctx, etcdCall)
	defer cancel()
	listed, err := r.Members.MemberList(limited)
	if err != nil {
		return err
	}
	for _, member := range listed.Members {
		// Other nodes' names may begin alike.
		if name, ok := nodeOf(member.Name); !ok || name != nodeName || member.ID == r.own {
			continue
		}
		klog.Infof("the Node %s is gone: its datastore member %s goes", nodeName, member.Name)
		if _, err := r.Members.MemberRemove(limited, member.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
			return fmt.Errorf("removing the member %s: %w", member.Name, err)
		}
	}
	return nil
}
