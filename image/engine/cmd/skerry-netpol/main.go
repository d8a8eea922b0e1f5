// Command skerry-netpol enforces NetworkPolicy on this node by itself, for nodes whose engine does not:
//
//	skerry-netpol --kubeconfig FILE --node-name NAME [--bridge INTERFACE]
//	skerry-netpol --remove
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"

	"skerry/engine/internal/netpol"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "file that says how to reach the API server; in a pod, it is known")
	name := flag.String("node-name", os.Getenv("NODE_NAME"), "this node's name in Kubernetes")
	bridge := flag.String("bridge", "", "interface of the node's pods (skerry-pods)")
	remove := flag.Bool("remove", false, "take the rules away and end")
	flag.Parse()
	if !*remove && *name == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *kubeconfig, netpol.Settings{NodeName: *name, Bridge: *bridge}, *remove); err != nil {
		fmt.Fprintf(os.Stderr, "skerry-netpol: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig string, settings netpol.Settings, remove bool) error {
	if remove {
		return netpol.Remove(ctx)
	}
	client, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig %q: %w", kubeconfig, err)
	}
	settings.Client = client
	return netpol.Run(ctx, settings)
}
