// Package netpol enforces NetworkPolicy on one node.
//
// It watches pods, namespaces and policies, works out what this node has to enforce, and puts it into
// the nftables table `inet skerry-policy`. What it cannot vouch for is closed: a pod
// of the node passes packets only once it is in the table, and its address is let out of the gate of
// the CNI server (`inet skerry-pods`, sets pending_v4 and pending_v6) only after that. The table
// outlives this process, so that a restart neither opens nor cuts a pod.
package netpol

import (
	"context"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/knftables"
)

// Settings are what enforcement has to know.
type Settings struct {
	// Client may get, list and watch pods, namespaces and networkpolicies.
	Client   *rest.Config
	NodeName string
	// Bridge is the interface of the node's pods; "" is skerry-pods.
	Bridge string
}

// Run enforces until the context ends. Its rules stay when it ends. Only a machine without nftables is
// an error; everything else is tried again.
func Run(ctx context.Context, settings Settings) error {
	client, err := kubernetes.NewForConfig(settings.Client)
	if err != nil {
		return fmt.Errorf("making the client of NetworkPolicy: %w", err)
	}
	policy, err := table(Table)
	if err != nil {
		return err
	}
	gate, err := table(gateTable)
	if err != nil {
		return err
	}
	return newController(client, policy, gate, settings).run(ctx)
}

// Remove takes the table away: policies are not enforced from then on, and nothing is held back by it.
func Remove(ctx context.Context) error {
	policy, err := table(Table)
	if err != nil {
		return err
	}
	tx := policy.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := policy.Run(ctx, tx); err != nil {
		return fmt.Errorf("removing the nftables table %s: %w", Table, err)
	}
	return nil
}

func table(name string) (knftables.Interface, error) {
	made, err := knftables.New(knftables.InetFamily, name)
	if err != nil {
		return nil, fmt.Errorf("NetworkPolicy needs nftables: %w", err)
	}
	return made, nil
}
