package approve

import (
	"context"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// Run decides about every request until the context ends. Several servers may do it at once.
func Run(ctx context.Context, client kubernetes.Interface) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	requests := factory.Certificates().V1().CertificateSigningRequests()
	nodes := factory.Core().V1().Nodes()
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))
	enqueue := func(object any) {
		if request, ok := object.(*certificatesv1.CertificateSigningRequest); ok {
			queue.Add(request.Name)
		}
	}
	if _, err := requests.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }}); err != nil {
		return fmt.Errorf("watching certificate requests: %w", err)
	}
	lists := func() ([]*core.Node, []*certificatesv1.CertificateSigningRequest) {
		allNodes, _ := nodes.Lister().List(labels.Everything())
		allRequests, _ := requests.Lister().List(labels.Everything())
		return allNodes, allRequests
	}
	nodes.Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go func() {
		<-ctx.Done()
		queue.ShutDown()
	}()
	for {
		name, ended := queue.Get()
		if ended {
			factory.Shutdown()
			return nil
		}
		request, err := requests.Lister().Get(name)
		if err == nil {
			err = settle(ctx, client, request, lists)
		}
		if err != nil && !errors.IsNotFound(err) {
			klog.V(1).Infof("certificate request %s: %v", name, err)
			queue.AddRateLimited(name)
		} else {
			queue.Forget(name)
		}
		queue.Done(name)
	}
}

func settle(ctx context.Context, client kubernetes.Interface, request *certificatesv1.CertificateSigningRequest, lists func() ([]*core.Node, []*certificatesv1.CertificateSigningRequest)) error {
	nodes, others := lists()
	verdict, why := Decide(request, nodes, others, time.Now())
	switch verdict {
	case Ignore:
		return nil
	case Wait:
		return fmt.Errorf("waiting: %s", why)
	}
	condition := certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: core.ConditionTrue, Reason: "Skerry", Message: why, LastUpdateTime: meta.Now(),
	}
	if verdict == Deny {
		condition.Type = certificatesv1.CertificateDenied
		klog.Warningf("certificate request %s of %s denied: %s", request.Name, request.Spec.Username, why)
	}
	changed := request.DeepCopy()
	changed.Status.Conditions = append(changed.Status.Conditions, condition)
	_, err := client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, changed.Name, changed, meta.UpdateOptions{})
	if errors.IsConflict(err) {
		return nil // another server was first, or the watch brings what changed
	}
	return err
}
