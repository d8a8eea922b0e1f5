// Command skerry-engine is Kubernetes in one program, with the command line of k3s:
//
//	skerry-engine server|agent [--config FILE] [OPTIONS]
//	skerry-engine kubectl ...
//
// Called as `kubectl` it is kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"skerry/engine/internal/agent"
	"skerry/engine/internal/component"
	"skerry/engine/internal/config"
	"skerry/engine/internal/join"
	"skerry/engine/internal/notify"
	"skerry/engine/internal/server"
)

const usage = `usage: skerry-engine server [OPTIONS]
       skerry-engine agent [OPTIONS]
       skerry-engine kubectl ...
       skerry-engine --version
`

func main() {
	os.Exit(run(os.Args))
}

func run(words []string) int {
	if filepath.Base(words[0]) == "kubectl" {
		return runKubectl(words[1:])
	}
	if len(words) < 2 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	switch words[1] {
	case "server", "agent":
		return runNode(config.Role(words[1]), words[2:])
	case "kubectl":
		return runKubectl(words[2:])
	case "--version", "-v", "version":
		fmt.Printf("skerry-engine %s (%s)\n", version.Get().GitVersion, version.Get().GoVersion)
		return 0
	case "--help", "-h", "help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprintf(os.Stderr, "skerry-engine: unknown command %q\n%s", words[1], usage)
	return 2
}

func runKubectl(words []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		if _, err := os.Stat(config.DefaultKubeconfig); err == nil {
			os.Setenv("KUBECONFIG", config.DefaultKubeconfig)
		}
	}
	os.Args = append([]string{"kubectl"}, words...)
	// It prints its own errors.
	if err := kubectl.NewDefaultKubectlCommand().Execute(); err != nil {
		return 1
	}
	return 0
}

func runNode(role config.Role, words []string) int {
	options, err := config.Parse(role, words, os.ReadFile)
	if errors.Is(err, config.ErrHelp) {
		fmt.Print(config.Help(role))
		return 0
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "skerry-engine: %v\n", err)
		return 2
	}
	// The kubelet makes folders for pods of any user; what is secret of ours says so file by file.
	syscall.Umask(0o022)
	thrift()
	notifier := notify.New()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if role == config.Server {
		err = server.Run(ctx, options, notifier)
	} else {
		err = runAgent(ctx, options, notifier)
	}
	klog.Flush()
	if err != nil {
		fmt.Fprintf(os.Stderr, "skerry-engine: %v\n", err)
		var wrong *component.ArgumentError
		if errors.As(err, &wrong) {
			return 2
		}
		return 1
	}
	return 0
}

// thrift trades processor for memory, unless the environment says how.
func thrift() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

func runAgent(parent context.Context, options *config.Options, notifier *notify.Notifier) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	credentials, facts, err := join.Agent(ctx, options)
	if err != nil {
		return err
	}
	failed := func(err error) { cancel(err) }
	if credentials.Server, err = agent.Balance(ctx, options, failed); err != nil {
		return err
	}
	running, err := agent.Start(ctx, options, credentials, facts, failed)
	if err == nil {
		err = agent.WaitRegistered(ctx, options)
	}
	if err == nil {
		notifier.Ready("the node is registered")
		<-ctx.Done()
	}
	agent.Wait(running)
	if why := context.Cause(ctx); why != nil && !errors.Is(why, context.Canceled) {
		return why
	}
	if parent.Err() != nil {
		return nil
	}
	return err
}
