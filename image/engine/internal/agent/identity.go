package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/certificate/bootstrap"

	"skerry/engine/internal/config"
)

// How long to wait after a request for the node's certificate that failed: the first time, and at most.
const (
	firstPause = 2 * time.Second
	lastPause  = 32 * time.Second
)

// keptKey is where Kubernetes keeps the key of a request, until it has the certificate.
const keptKey = "kubelet-client.key.tmp"

// obtain gets a new node's certificate, and gives up only when the context ends.
//
// The kubelet could do so by itself, but would make a new key for each attempt: where the answer to a
// request was lost, or a restart came between, its second request looks like one of another machine of
// that name, and is denied for as long as the first one counts. Here the key outlives the attempt, and
// the request is found again by it.
func obtain(ctx context.Context, o *config.Options, bootstrapFile string) error {
	pause := firstPause
	for {
		err := bootstrap.LoadClientCert(ctx, kubeconfigFile(o), bootstrapFile, o.AgentDir("pki"), types.NodeName(o.NodeName))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			// It holds the token, which is of no more use here.
			if err := os.Remove(bootstrapFile); err != nil && !os.IsNotExist(err) {
				return err
			}
			return nil
		}
		klog.Warningf("asking for this node's certificate: %v; trying again in %s", err, pause)
		if strings.Contains(err.Error(), "is denied") {
			// A verdict is for ever: only a new request may fare better.
			if err := os.Remove(filepath.Join(o.AgentDir("pki"), keptKey)); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("forgetting a key that was refused: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}
