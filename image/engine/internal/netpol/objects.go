package netpol

import (
	"net/netip"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podOf returns a pod that policies are about, or nil: one in the node's own network has no address of
// its own, one that has ended has none any more.
func podOf(pod *core.Pod) *Pod {
	ended := pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
	if pod.Spec.HostNetwork || ended {
		return nil
	}
	made := &Pod{
		UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName,
		Labels: pod.Labels, Leaving: pod.DeletionTimestamp != nil,
	}
	for _, one := range pod.Status.PodIPs {
		if address, err := netip.ParseAddr(one.IP); err == nil {
			made.Addresses = append(made.Addresses, address.Unmap())
		}
	}
	for _, container := range pod.Spec.Containers {
		made.Ports = append(made.Ports, namedPorts(container)...)
	}
	for _, container := range pod.Spec.InitContainers {
		if always := container.RestartPolicy; always != nil && *always == core.ContainerRestartPolicyAlways {
			made.Ports = append(made.Ports, namedPorts(container)...)
		}
	}
	return made
}

func namedPorts(container core.Container) []NamedPort {
	var found []NamedPort
	for _, port := range container.Ports {
		if port.Name != "" {
			found = append(found, NamedPort{port.Name, port.Protocol, uint16(port.ContainerPort)})
		}
	}
	return found
}

// slim drops what nobody asks for: every node holds all pods of the cluster in memory.
func slim(object any) (any, error) {
	switch one := object.(type) {
	case *core.Pod:
		kept := &core.Pod{ObjectMeta: slimMeta(one.ObjectMeta)}
		kept.Spec.NodeName, kept.Spec.HostNetwork = one.Spec.NodeName, one.Spec.HostNetwork
		kept.Spec.Containers = slimContainers(one.Spec.Containers)
		kept.Spec.InitContainers = slimContainers(one.Spec.InitContainers)
		kept.Status.Phase, kept.Status.PodIPs = one.Status.Phase, one.Status.PodIPs
		return kept, nil
	case *core.Namespace:
		return &core.Namespace{ObjectMeta: slimMeta(one.ObjectMeta)}, nil
	case *networking.NetworkPolicy:
		return &networking.NetworkPolicy{ObjectMeta: slimMeta(one.ObjectMeta), Spec: one.Spec}, nil
	}
	return object, nil
}

func slimMeta(full meta.ObjectMeta) meta.ObjectMeta {
	return meta.ObjectMeta{
		Name: full.Name, Namespace: full.Namespace, UID: full.UID, Generation: full.Generation,
		ResourceVersion: full.ResourceVersion, Labels: full.Labels,
		DeletionTimestamp: full.DeletionTimestamp,
	}
}

func slimContainers(containers []core.Container) []core.Container {
	var kept []core.Container
	for _, one := range containers {
		if len(namedPorts(one)) > 0 {
			kept = append(kept, core.Container{Ports: one.Ports, RestartPolicy: one.RestartPolicy})
		}
	}
	return kept
}
