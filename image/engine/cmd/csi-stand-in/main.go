// Command csi-stand-in is what a kubelet sees of a CSI driver that registers, and no more: for tests.
//
//	csi-stand-in NAME NODE SOCKET
//
// SOCKET lies in the kubelet's folder plugins_registry. It is gone with the program.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type driver struct {
	registration.UnimplementedRegistrationServer
	csi.UnimplementedNodeServer
	name, node, socket string
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: d.name, Endpoint: d.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus passes on what the kubelet says. It asks again after a refusal.
func (d *driver) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Printf("registered: %t %s\n", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: csi-stand-in NAME NODE SOCKET")
		os.Exit(2)
	}
	if err := run(&driver{name: os.Args[1], node: os.Args[2], socket: os.Args[3]}); err != nil {
		fmt.Fprintf(os.Stderr, "csi-stand-in: %v\n", err)
		os.Exit(1)
	}
}

func run(d *driver) error {
	listener, err := net.Listen("unix", d.socket)
	if err != nil {
		return fmt.Errorf("listening for the kubelet: %w", err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, d)
	csi.RegisterNodeServer(server, d)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}
