package server

import (
	"context"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"skerry/engine/internal/datastore"
)

const (
	lookEvery = 20 * time.Second
	// A server that joins is a member before it has a Node: it may restart meanwhile.
	missesAllowed = 5
)

// removeMembers takes the datastore's members of deleted Nodes away, so that a lost server does not count
// in the majority for ever.
func removeMembers(ctx context.Context, client kubernetes.Interface, store *datastore.Running, own string) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	gone := make(chan string, 16)
	_, err := factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(object any) {
		if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = last.Obj
		}
		if node, ok := object.(*core.Node); ok && node.Name != own {
			select {
			case gone <- node.Name:
			case <-ctx.Done():
			}
		}
	}})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	waiting := map[string]bool{}
	timer := time.NewTicker(5 * time.Second)
	defer timer.Stop()
	// A deletion may have come while no server watched, or all restarted.
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	missed := misses{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-gone:
			waiting[name] = true
		case <-timer.C:
		case <-look.C:
			names, err := silentWithoutNode(ctx, client, store)
			if err != nil {
				klog.Warningf("looking for datastore members that were left behind: %v", err)
				continue
			}
			for _, name := range missed.again(names) {
				waiting[name] = true
			}
		}
		for name := range waiting {
			// It may be back by now, as a new member of the same name.
			if _, err := client.CoreV1().Nodes().Get(ctx, name, meta.GetOptions{}); err == nil {
				delete(waiting, name)
			} else if !apierrors.IsNotFound(err) {
				continue
			} else if err := store.RemoveMembers(ctx, name); err != nil {
				klog.Warningf("the datastore's members of the deleted Node %s: %v; trying again", name, err)
			} else {
				delete(waiting, name)
			}
		}
	}
}

// silentWithoutNode returns the names of nodes that have members in the datastore which do not answer, and
// no Node.
func silentWithoutNode(ctx context.Context, client kubernetes.Interface, store *datastore.Running) ([]string, error) {
	names, err := store.Others(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		if _, err := client.CoreV1().Nodes().Get(ctx, name, meta.GetOptions{}); err == nil {
			continue
		} else if !apierrors.IsNotFound(err) {
			return nil, err
		}
		if !store.Answers(ctx, name) {
			found = append(found, name)
		}
	}
	return found, nil
}

// misses counts, by name, in how many looks in a row a server was gone.
type misses map[string]int

// again takes a look's names and returns those that were gone for too long.
func (m misses) again(gone []string) []string {
	before := map[string]int{}
	for name, count := range m {
		before[name] = count
		delete(m, name)
	}
	var late []string
	for _, name := range gone {
		m[name] = before[name] + 1
		if m[name] > missesAllowed {
			late = append(late, name)
		}
	}
	return late
}
