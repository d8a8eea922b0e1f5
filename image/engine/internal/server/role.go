package server

import (
	"context"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"skerry/engine/internal/config"
)

// labelNode marks this node as a server, which a kubelet may not do itself. It watches on, since the
// Node may be deleted and come back.
func labelNode(ctx context.Context, client kubernetes.Interface, o *config.Options) error {
	const label = "node-role.kubernetes.io/control-plane"
	patch := []byte(`{"metadata":{"labels":{"` + label + `":"true"}}}`)
	wait := time.Second
	for {
		node, err := client.CoreV1().Nodes().Get(ctx, o.NodeName, meta.GetOptions{})
		if err == nil {
			wait = time.Minute
			if node.Labels[label] != "true" {
				if _, err := client.CoreV1().Nodes().Patch(ctx, o.NodeName, types.MergePatchType, patch, meta.PatchOptions{FieldManager: fieldManager}); err != nil {
					klog.Errorf("labelling the Node %s: %v", o.NodeName, err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
