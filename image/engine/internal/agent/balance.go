package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"skerry/engine/internal/files"
)

// An agent's components call a port of its own loopback; each connection goes on to a server that takes it.
// It is TLS from end to end: who sits between can neither read nor change it, so the list of servers
// needs no more trust than the network itself.
const (
	balanceAddress = "127.0.0.1:6444"
	dialTimeout    = 4 * time.Second
	learnEvery     = 15 * time.Second
)

// Balancer passes connections on to servers.
type Balancer struct {
	mutex   sync.Mutex
	servers []string // the one that worked last is first
	given   string
	path    string
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewBalancer knows the server of the option, and those of the last life.
func NewBalancer(given, path string) *Balancer {
	b := &Balancer{given: given, path: path, dial: (&net.Dialer{Timeout: dialTimeout}).DialContext}
	var kept []string
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &kept); err != nil {
			klog.Warningf("%s is damaged: %v", path, err)
		}
	}
	b.learn(kept)
	return b
}

// learn replaces the list, and keeps the order of those that stay.
func (b *Balancer) learn(found []string) (changed bool) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	wanted := slices.Clone(found)
	if !slices.Contains(wanted, b.given) {
		wanted = append(wanted, b.given)
	}
	var servers []string
	for _, one := range append(slices.Clone(b.servers), wanted...) {
		if slices.Contains(wanted, one) && !slices.Contains(servers, one) {
			servers = append(servers, one)
		}
	}
	changed = !slices.Equal(servers, b.servers)
	b.servers = servers
	return changed
}

func (b *Balancer) list() []string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return slices.Clone(b.servers)
}

// failed puts a server behind the others, unless it is there already.
func (b *Balancer) failed(server string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if i := slices.Index(b.servers, server); i >= 0 {
		b.servers = append(slices.Delete(b.servers, i, i+1), server)
	}
}

// reach connects to the first server that takes it.
func (b *Balancer) reach(ctx context.Context) (net.Conn, error) {
	var problems []error
	for _, server := range b.list() {
		connection, err := b.dial(ctx, "tcp", server)
		if err == nil {
			return connection, nil
		}
		problems = append(problems, err)
		b.failed(server)
	}
	return nil, errors.Join(problems...)
}

// Listen opens the port; Serve then passes connections on until the context ends.
func (b *Balancer) Listen() (net.Listener, error) {
	listener, err := net.Listen("tcp", balanceAddress)
	if err != nil {
		return nil, fmt.Errorf("the port on which this node's components reach the servers: %w", err)
	}
	return listener, nil
}

// Serve is described at Listen.
func (b *Balancer) Serve(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		inner, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go b.pass(ctx, inner)
	}
}

func (b *Balancer) pass(ctx context.Context, inner net.Conn) {
	defer inner.Close()
	outer, err := b.reach(ctx)
	if err != nil {
		klog.V(1).Infof("no server answers: %v", err)
		return
	}
	defer outer.Close()
	stop := context.AfterFunc(ctx, func() { inner.Close(); outer.Close() })
	defer stop()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{inner, outer}, {outer, inner}} {
		go func() {
			io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done // either end: the other direction of TLS is of no use then
}

// Follow keeps the list as the cluster has it.
func (b *Balancer) Follow(ctx context.Context, client kubernetes.Interface) error {
	for {
		slices, err := client.DiscoveryV1().EndpointSlices(meta.NamespaceDefault).List(ctx, meta.ListOptions{LabelSelector: discovery.LabelServiceName + "=kubernetes"})
		if err == nil {
			if found := endpoints(slices.Items); len(found) > 0 && b.learn(found) {
				klog.Infof("the cluster's servers: %v", found)
				if text, err := json.Marshal(found); err == nil {
					if err := files.Write(b.path, text, 0o600); err != nil {
						klog.Errorf("%v", err)
					}
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(learnEvery):
		}
	}
}

func endpoints(found []discovery.EndpointSlice) []string {
	var all []string
	for _, slice := range found {
		for _, port := range slice.Ports {
			for _, endpoint := range slice.Endpoints {
				ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
				for _, address := range endpoint.Addresses {
					if ready && port.Port != nil {
						all = append(all, net.JoinHostPort(address, fmt.Sprint(*port.Port)))
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
