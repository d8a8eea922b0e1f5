package netpol

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"sigs.k8s.io/knftables"
)

const (
	gateTable = "skerry-pods"
	// Changes within this time are one transaction.
	settle = 50 * time.Millisecond
	// How soon what did not work is tried again.
	retry = time.Second
	// How often it is looked whether anybody still waits at the gate.
	sweep = 30 * time.Second
)

type controller struct {
	client       kubernetes.Interface
	policy, gate knftables.Interface
	settings     Settings
	informers    informers.SharedInformerFactory
	pods         corelisters.PodLister
	namespaces   corelisters.NamespaceLister
	policies     networkinglisters.NetworkPolicyLister
	synced       []cache.InformerSynced
	changed      chan struct{}
	// What the table says, as text.
	applied string
	said    map[string]bool
}

func newController(
	client kubernetes.Interface, policy, gate knftables.Interface, settings Settings,
) *controller {
	if settings.Bridge == "" {
		settings.Bridge = "skerry-pods"
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	c := &controller{
		client: client, policy: policy, gate: gate, settings: settings, informers: factory,
		pods:       factory.Core().V1().Pods().Lister(),
		namespaces: factory.Core().V1().Namespaces().Lister(),
		policies:   factory.Networking().V1().NetworkPolicies().Lister(),
		changed:    make(chan struct{}, 1),
		said:       map[string]bool{},
	}
	notify := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.wake() },
		UpdateFunc: func(any, any) { c.wake() },
		DeleteFunc: func(any) { c.wake() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().Pods().Informer(),
		factory.Core().V1().Namespaces().Informer(),
		factory.Networking().V1().NetworkPolicies().Informer(),
	} {
		registration, err := informer.AddEventHandler(notify)
		if err != nil {
			// Only a stopped informer refuses, and these have not begun.
			panic(err)
		}
		c.synced = append(c.synced, registration.HasSynced)
	}
	return c
}

func (c *controller) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *controller) run(ctx context.Context) error {
	c.informers.Start(ctx.Done())
	defer c.informers.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	klog.InfoS("Enforcing NetworkPolicy", "node", c.settings.NodeName)
	timer := time.NewTimer(0)
	defer timer.Stop()
	// Changes that never end must not put it off for ever: only the first of them sets the timer.
	soon := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
			if !soon {
				soon = true
				timer.Reset(settle)
			}
		case <-timer.C:
			soon = false
			next := sweep
			if err := c.sync(ctx); err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "NetworkPolicy: the node keeps the rules it has, new pods wait")
				next = retry
			}
			timer.Reset(next)
		}
	}
}

// sync brings the table up to date, and then lets out who waits at the gate for it.
func (c *controller) sync(ctx context.Context) error {
	known, err := c.cluster()
	if err != nil {
		return err
	}
	waiting, err := c.waiting(ctx)
	if err != nil {
		return err
	}
	ready := expected(known, c.settings.NodeName, waiting)
	// Trouble with those who wait does not keep changes from those who are there.
	var late error
	for namespace := range ready {
		if err := c.upToDate(ctx, namespace); err != nil {
			delete(ready, namespace)
			late = err
		}
	}
	if len(ready) > 0 {
		// What upToDate has seen is in the cache by now, but maybe not in what was read before.
		if known, err = c.cluster(); err != nil {
			return err
		}
	}
	rules, troubles := Compile(known, c.settings.NodeName)
	c.complain(troubles)
	if err := c.apply(ctx, rules); err != nil {
		return err
	}
	if err := c.release(ctx, ready); err != nil {
		return err
	}
	return late
}

func (c *controller) apply(ctx context.Context, rules Ruleset) error {
	laid, switched := c.policy.NewTransaction(), c.policy.NewTransaction()
	Lay(laid, rules, c.settings.Bridge)
	Switch(switched, rules, nil, nil)
	text := laid.String() + switched.String()
	if text == c.applied {
		return nil
	}
	c.applied = ""
	if err := c.write(ctx, laid, rules); err != nil {
		return fmt.Errorf("writing the nftables table %s: %w", Table, err)
	}
	c.applied = text
	return nil
}

func (c *controller) write(ctx context.Context, laid *knftables.Transaction, rules Ruleset) error {
	if err := c.policy.Run(ctx, laid); err != nil {
		return err
	}
	chains, err := c.policy.List(ctx, "chains")
	if err != nil {
		return err
	}
	sets, err := c.policy.List(ctx, "sets")
	if err != nil {
		return err
	}
	switched := c.policy.NewTransaction()
	Switch(switched, rules, chains, sets)
	return c.policy.Run(ctx, switched)
}

// upToDate returns an error while the cache lacks a policy of a namespace that the API server has.
//
// Pods and policies come on streams of their own: that a pod was heard of does not mean that a policy
// which is older was. So before a new pod is let out, its namespace's policies are read once more.
func (c *controller) upToDate(ctx context.Context, namespace string) error {
	listed, err := c.client.NetworkingV1().NetworkPolicies(namespace).List(ctx, meta.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading the policies of namespace %s: %w", namespace, err)
	}
	for _, policy := range listed.Items {
		known, err := c.policies.NetworkPolicies(namespace).Get(policy.Name)
		if err != nil || known.UID != policy.UID || known.Generation < policy.Generation {
			return fmt.Errorf("policy %s/%s is not known here yet", namespace, policy.Name)
		}
	}
	return nil
}

// waiting returns the addresses that are held back at the gate.
func (c *controller) waiting(ctx context.Context) (map[netip.Addr]bool, error) {
	found := map[netip.Addr]bool{}
	for _, family := range families {
		set := "pending_v" + family.suffix
		elements, err := c.gate.ListElements(ctx, "set", set)
		if knftables.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the gate's set %s: %w", set, err)
		}
		for _, one := range elements {
			if address, err := netip.ParseAddr(one.Key[0]); err == nil {
				found[address] = true
			}
		}
	}
	return found, nil
}

// expected returns by namespace the waiting addresses of the node's pods. An address that two pods
// claim, or one that is being deleted, belongs to nobody for now.
func expected(known Cluster, node string, waiting map[netip.Addr]bool) map[string][]netip.Addr {
	owners := map[netip.Addr][]*Pod{}
	for _, pod := range known.Pods {
		if pod.Node != node {
			continue
		}
		for _, address := range pod.Addresses {
			if waiting[address] {
				owners[address] = append(owners[address], pod)
			}
		}
	}
	found := map[string][]netip.Addr{}
	for address, pods := range owners {
		if len(pods) == 1 && !pods[0].Leaving {
			found[pods[0].Namespace] = append(found[pods[0].Namespace], address)
		}
	}
	return found
}

func (c *controller) release(ctx context.Context, ready map[string][]netip.Addr) error {
	if len(ready) == 0 {
		return nil
	}
	tx := c.gate.NewTransaction()
	for _, addresses := range ready {
		for _, address := range addresses {
			set, key := "pending_v"+familyOf(address).suffix, []string{address.String()}
			// Added first: its pod may have gone meanwhile, and taking away what is not there fails.
			tx.Add(&knftables.Element{Set: set, Key: key})
			tx.Delete(&knftables.Element{Set: set, Key: key})
		}
	}
	if err := c.gate.Run(ctx, tx); err != nil {
		return fmt.Errorf("letting new pods out of the gate: %w", err)
	}
	klog.V(2).InfoS("NetworkPolicy: new pods are let out", "addresses", ready)
	return nil
}

// complain logs what could not be read in the policies, once each.
func (c *controller) complain(troubles []error) {
	now := map[string]bool{}
	for _, trouble := range troubles {
		now[trouble.Error()] = true
		if !c.said[trouble.Error()] {
			klog.ErrorS(trouble, "That part of it lets nothing through")
		}
	}
	c.said = now
}

// cluster returns what the informers know, always in the same order: equal rules are equal text.
func (c *controller) cluster() (Cluster, error) {
	found := Cluster{Namespaces: map[string]labels.Set{}}
	pods, err := c.pods.List(labels.Everything())
	if err != nil {
		return found, fmt.Errorf("reading the known pods: %w", err)
	}
	for _, pod := range pods {
		if one := podOf(pod); one != nil {
			found.Pods = append(found.Pods, one)
		}
	}
	namespaces, err := c.namespaces.List(labels.Everything())
	if err != nil {
		return found, fmt.Errorf("reading the known namespaces: %w", err)
	}
	for _, namespace := range namespaces {
		found.Namespaces[namespace.Name] = namespace.Labels
	}
	if found.Policies, err = c.policies.List(labels.Everything()); err != nil {
		return found, fmt.Errorf("reading the known policies: %w", err)
	}
	found.sort()
	return found, nil
}
