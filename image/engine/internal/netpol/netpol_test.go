package netpol

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/knftables"
)

// A bench is a controller on an API server and nftables that are imitations.
type bench struct {
	client       *fake.Clientset
	policy, gate *knftables.Fake
	controller   *controller
}

func newBench(t *testing.T, objects ...runtime.Object) *bench {
	t.Helper()
	b := &bench{
		client: fake.NewClientset(objects...),
		policy: knftables.NewFake(knftables.InetFamily, Table),
		gate:   knftables.NewFake(knftables.InetFamily, gateTable),
	}
	tx := b.gate.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Set{Name: "pending_v4", Type: "ipv4_addr"})
	tx.Add(&knftables.Set{Name: "pending_v6", Type: "ipv6_addr"})
	if err := b.gate.Run(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
	b.controller = newController(b.client, b.policy, b.gate, Settings{NodeName: node})
	return b
}

// start runs the controller inside a bubble of its own time; stop it before the bubble ends.
func (b *bench) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.controller.run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (b *bench) hold(t *testing.T, addresses ...string) {
	t.Helper()
	tx := b.gate.NewTransaction()
	for _, text := range addresses {
		suffix := familyOf(netip.MustParseAddr(text)).suffix
		tx.Add(&knftables.Element{Set: "pending_v" + suffix, Key: []string{text}})
	}
	if err := b.gate.Run(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) held(t *testing.T) string {
	t.Helper()
	waiting, err := b.controller.waiting(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for address := range waiting {
		found = append(found, address.String())
	}
	return strings.Join(found, " ")
}

func (b *bench) isolated(address string) bool {
	return b.policy.Table != nil && b.policy.Table.Maps["in4"].FindElement(address) != nil
}

func running(name, address string) *core.Pod {
	made := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name)}}
	made.Spec.NodeName = node
	made.Status.Phase = core.PodRunning
	made.Status.PodIPs = []core.PodIP{{IP: address}}
	return made
}

func denial() *networking.NetworkPolicy {
	return &networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Name: "deny", Namespace: "shop", UID: "1"}}
}

// watched calls a function before each transaction.
type watched struct {
	knftables.Interface
	before func()
}

func (w watched) Run(ctx context.Context, tx *knftables.Transaction) error {
	w.before()
	return w.Interface.Run(ctx, tx)
}

func TestANewPodIsLetOutOnceItsPoliciesAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, denial())
		b.hold(t, "10.244.1.9")
		b.controller.gate = watched{b.gate, func() {
			if !b.isolated("10.244.1.9") {
				t.Error("let out before it was isolated")
			}
		}}
		defer b.start(t)()
		time.Sleep(3 * time.Second)
		if b.held(t) == "" {
			t.Fatal("an address was let out although no pod is known to have it")
		}
		if _, err := b.client.CoreV1().Pods("shop").Create(context.Background(), running("a", "10.244.1.9"), meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if b.held(t) != "" {
			t.Error("it still waits")
		}
	})
}

func TestAPolicyThatWasNotHeardOfYetHoldsPodsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, running("a", "10.244.1.9"))
		b.hold(t, "10.244.1.9")
		hidden := true
		b.client.PrependReactor("list", "networkpolicies", func(action clienttesting.Action) (bool, runtime.Object, error) {
			if hidden && action.GetNamespace() == "shop" {
				return true, &networking.NetworkPolicyList{Items: []networking.NetworkPolicy{*denial()}}, nil
			}
			return false, nil, nil
		})
		defer b.start(t)()
		time.Sleep(5 * time.Second)
		if b.held(t) == "" {
			t.Fatal("let out although the API server has a policy that is not enforced")
		}
		hidden = false
		if _, err := b.client.NetworkingV1().NetworkPolicies("shop").Create(context.Background(), denial(), meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if b.held(t) != "" || !b.isolated("10.244.1.9") {
			t.Errorf("held: %q, isolated: %v", b.held(t), b.isolated("10.244.1.9"))
		}
	})
}

func TestAnApiServerThatDoesNotAnswerLetsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, running("a", "10.244.1.9"))
		b.hold(t, "10.244.1.9")
		down := true
		b.client.PrependReactor("list", "networkpolicies", func(action clienttesting.Action) (bool, runtime.Object, error) {
			return down && action.GetNamespace() == "shop", nil, context.DeadlineExceeded
		})
		defer b.start(t)()
		time.Sleep(5 * time.Second)
		if b.held(t) == "" {
			t.Fatal("let out")
		}
		down = false
		time.Sleep(2 * time.Second)
		if b.held(t) != "" {
			t.Error("it still waits although the API server answers")
		}
	})
}

func TestAnAddressOfTwoPodsOrOfALeavingOneWaits(t *testing.T) {
	now := meta.Now()
	leaving := running("leaving", "10.244.1.8")
	leaving.DeletionTimestamp, leaving.Finalizers = &now, []string{"x/y"}
	ended := running("ended", "10.244.1.7")
	ended.Status.Phase = core.PodSucceeded
	node := running("node", "10.244.1.6")
	node.Spec.HostNetwork = true
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, running("a", "10.244.1.9"), running("b", "10.244.1.9"), leaving, ended, node)
		for _, one := range []string{"10.244.1.6", "10.244.1.7", "10.244.1.8", "10.244.1.9"} {
			b.hold(t, one)
		}
		defer b.start(t)()
		time.Sleep(2 * sweep)
		if found := b.held(t); len(strings.Fields(found)) != 4 {
			t.Errorf("held: %s", found)
		}
	})
}

func TestWithoutAGateThereIsNobodyToLetOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, running("a", "10.244.1.9"), denial())
		b.gate = knftables.NewFake(knftables.InetFamily, gateTable)
		b.controller.gate = b.gate
		defer b.start(t)()
		time.Sleep(time.Second)
		if !b.isolated("10.244.1.9") {
			t.Error("not isolated")
		}
	})
}

func TestNothingIsWrittenWhenNothingChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, running("a", "10.244.1.9"))
		defer b.start(t)()
		time.Sleep(time.Second)
		before := b.controller.applied
		b.policy.Table = nil // a second writing would make it again
		time.Sleep(3 * sweep)
		if b.policy.Table != nil || before == "" {
			t.Error("the same rules were written again")
		}
	})
}
