// Package component runs Kubernetes' own components inside this process.
//
// Each Prepare function reads the arguments, so that a wrong one is refused before anything starts, and
// returns what runs the component until its context ends.
package component

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
	"k8s.io/klog/v2"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controlleroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	kubeletoptions "k8s.io/kubernetes/cmd/kubelet/app/options"
)

// Runner runs until its context ends or it fails.
type Runner func(context.Context) error

// ArgumentError is an argument that a component does not take.
type ArgumentError struct {
	Component string
	Err       error
}

func (e *ArgumentError) Error() string {
	return fmt.Sprintf("option %q: %v", e.Component+"-arg", e.Err)
}

func (e *ArgumentError) Unwrap() error { return e.Err }

func init() {
	// Every component sets up logging; all say the same.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
}

// Arguments merges the operator's NAME=VALUE into ours; a name of theirs replaces ours.
func Arguments(ours map[string]string, theirs []string) []string {
	var words []string
	named := map[string]bool{}
	for _, argument := range theirs {
		argument = strings.TrimPrefix(argument, "--")
		name, _, _ := strings.Cut(argument, "=")
		named[name] = true
		words = append(words, "--"+argument)
	}
	var before []string
	for name, value := range ours {
		if !named[name] {
			before = append(before, "--"+name+"="+value)
		}
	}
	sort.Strings(before)
	return append(before, words...)
}

func parse(component string, sets cliflag.NamedFlagSets, words []string) error {
	flags := pflag.NewFlagSet(component, pflag.ContinueOnError)
	flags.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.Usage = func() {}
	for _, set := range sets.FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(words); err != nil {
		return &ArgumentError{component, err}
	}
	if flags.NArg() > 0 {
		return &ArgumentError{component, fmt.Errorf("unexpected word %q", flags.Arg(0))}
	}
	return nil
}

// PrepareAPIServer returns the API server.
func PrepareAPIServer(words []string) (Runner, error) {
	options := apiserveroptions.NewServerRunOptions()
	if err := parse("kube-apiserver", options.Flags(), words); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		registry := options.GenericServerRunOptions.ComponentGlobalsRegistry
		if err := registry.Set(); err != nil {
			return err
		}
		rest.SetDefaultWarningHandler(rest.NoWarnings{})
		if err := logsapi.ValidateAndApply(options.Logs, registry.FeatureGateFor("kube")); err != nil {
			return err
		}
		completed, err := options.Complete(ctx)
		if err != nil {
			return err
		}
		if errs := completed.Validate(); len(errs) > 0 {
			return utilerrors.NewAggregate(errs)
		}
		return apiserver.Run(ctx, completed)
	}, nil
}

// PrepareControllerManager returns the controller manager.
func PrepareControllerManager(words []string) (Runner, error) {
	options, err := controlleroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, err
	}
	known, disabled, aliases := controllers.KnownControllers(), controllers.ControllersDisabledByDefault(), controllers.ControllerAliases()
	if err := parse("kube-controller-manager", options.Flags(known, disabled, aliases), words); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		config, err := options.Config(ctx, known, disabled, aliases)
		if err != nil {
			return err
		}
		return controllers.Run(ctx, config.Complete())
	}, nil
}

// PrepareScheduler returns the scheduler.
func PrepareScheduler(words []string) (Runner, error) {
	options := scheduleroptions.NewOptions()
	if err := parse("kube-scheduler", *options.Flags, words); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		config, scheduled, err := scheduler.Setup(ctx, options)
		if err != nil {
			return err
		}
		return scheduler.Run(ctx, config, scheduled)
	}, nil
}

// PrepareProxy returns kube-proxy. It leaves its rules as they are when it ends.
//
// Its validation does not know that its metrics may be off (`--metrics-port=0`), though it serves none
// then: unless the operator wants them, the options are judged with metrics and run without.
func PrepareProxy(words []string) (Runner, error) {
	options, flags, err := proxyOptions(words)
	if err != nil {
		return nil, err
	}
	if flags.Changed("metrics-port") || flags.Changed("metrics-bind-address") || flags.Changed("config") {
		return func(ctx context.Context) error { return runProxy(ctx, options, flags, options, flags) }, nil
	}
	quiet, quietFlags, err := proxyOptions(append(slices.Clone(words), "--metrics-port=0"))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return runProxy(ctx, options, flags, quiet, quietFlags) }, nil
}

func proxyOptions(words []string) (*proxy.Options, *pflag.FlagSet, error) {
	options := proxy.NewOptions()
	flags := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	options.AddFlags(flags)
	err := parse("kube-proxy", cliflag.NamedFlagSets{FlagSets: map[string]*pflag.FlagSet{"all": flags}}, words)
	return options, flags, err
}

func runProxy(ctx context.Context, judged *proxy.Options, judgedFlags *pflag.FlagSet, run *proxy.Options, runFlags *pflag.FlagSet) error {
	if err := judged.Complete(judgedFlags); err != nil {
		return err
	}
	if err := judged.Validate(); err != nil {
		return err
	}
	if run != judged {
		if err := run.Complete(runFlags); err != nil {
			return err
		}
	}
	return run.Run(ctx)
}

// PrepareKubelet returns the kubelet. It is the one component that takes the process's signals itself.
func PrepareKubelet(words []string) (Runner, error) {
	configuration, err := kubeletoptions.NewKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	flags := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	kubeletoptions.NewKubeletFlags().AddFlags(flags)
	kubeletoptions.AddKubeletConfigFlags(flags, configuration)
	kubeletoptions.AddGlobalFlags(flags)
	if err := parse("kubelet", cliflag.NamedFlagSets{FlagSets: map[string]*pflag.FlagSet{"all": flags}}, words); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		// Its command merges file and arguments by rules of its own.
		command := kubelet.NewKubeletCommand(ctx)
		command.SetArgs(words)
		command.SilenceErrors = true
		return command.ExecuteContext(ctx)
	}, nil
}

// signalLate is how long after a component that takes the process's signals itself (the kubelet) our own
// context may hear of the same signal.
const signalLate = 2 * time.Second

// Supervise runs a component; its end before the context's ends the program through `failed`.
func Supervise(ctx context.Context, name string, run Runner, failed func(error)) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(signalLate):
		}
		if err == nil {
			err = fmt.Errorf("it ended by itself")
		}
		klog.Errorf("%s: %v", name, err)
		failed(fmt.Errorf("%s: %w", name, err))
	}()
	return done
}
