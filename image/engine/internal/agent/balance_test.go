package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"

	discovery "k8s.io/api/discovery/v1"
)

func TestAServerThatFailsGoesToTheEnd(t *testing.T) {
	b := NewBalancer("10.0.0.1:6443", filepath.Join(t.TempDir(), "servers.json"))
	b.learn([]string{"10.0.0.2:6443", "10.0.0.3:6443"})
	if got := b.list(); !slices.Equal(got, []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}) {
		t.Fatalf("the given one comes first, and stays: %v", got)
	}
	dead := map[string]bool{"10.0.0.1:6443": true, "10.0.0.2:6443": true}
	var tried []string
	b.dial = func(_ context.Context, _, address string) (net.Conn, error) {
		tried = append(tried, address)
		if dead[address] {
			return nil, errors.New("nobody there")
		}
		one, _ := net.Pipe()
		return one, nil
	}
	for range 2 {
		if _, err := b.reach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443", "10.0.0.3:6443"}; !slices.Equal(tried, want) {
		t.Errorf("tried %v", tried)
	}
	// One that is no longer in the cluster goes; the given one never does.
	b.learn([]string{"10.0.0.2:6443"})
	if got := b.list(); !slices.Equal(got, []string{"10.0.0.1:6443", "10.0.0.2:6443"}) {
		t.Errorf("left %v", got)
	}
	dead["10.0.0.3:6443"] = true
	if _, err := b.reach(t.Context()); err == nil {
		t.Error("reached nobody, and no error")
	}
}

func TestWhatIsSaidArrives(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		connection, err := server.Accept()
		if err == nil {
			io.Copy(connection, connection)
			connection.Close()
		}
	}()
	b := NewBalancer(server.Addr().String(), filepath.Join(t.TempDir(), "servers.json"))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.Serve(ctx, listener) }()
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 5)
	if _, err := connection.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(connection, said); err != nil || string(said) != "hello" {
		t.Errorf("%q, %v", said, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := connection.Read(said); err == nil {
		t.Error("the connection outlives the balancer")
	}
}

func TestEndpoints(t *testing.T) {
	port, no := int32(6443), false
	found := endpoints([]discovery.EndpointSlice{{
		Ports: []discovery.EndpointPort{{Port: &port}},
		Endpoints: []discovery.Endpoint{
			{Addresses: []string{"10.0.0.2", "fd00::2"}},
			{Addresses: []string{"10.0.0.3"}, Conditions: discovery.EndpointConditions{Ready: &no}},
		},
	}})
	if !slices.Equal(found, []string{"10.0.0.2:6443", "[fd00::2]:6443"}) {
		t.Errorf("got %v", found)
	}
}
