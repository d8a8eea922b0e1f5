package server

import (
	"context"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	applyrbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"skerry/engine/internal/cluster"
	"skerry/engine/internal/token"
)

// fieldManager owns what the engine itself keeps in the cluster.
const fieldManager = "skerry-engine"

const roleLabel = "engine.skerry.local/join-token"

var force = meta.ApplyOptions{FieldManager: fieldManager, Force: true}

// joinToken is a Kubernetes bootstrap token made from a secret of ours. `kind` says which one it takes
// the place of when the secret is changed.
type joinToken struct {
	kind, id, secret, group string
}

// joinTokens returns those of the cluster's secret and, if there is one, of the agents' own.
func joinTokens(server token.Keys, agent *token.Keys) []joinToken {
	made := []joinToken{newJoinToken("server", server, token.Server), newJoinToken("agent", server, token.Agent)}
	if agent != nil {
		made = append(made, newJoinToken("agent-only", *agent, token.Agent))
	}
	return made
}

func newJoinToken(kind string, keys token.Keys, class token.Class) joinToken {
	id, secret := keys.Bootstrap(class)
	group := map[token.Class]string{token.Server: cluster.ServerGroup, token.Agent: cluster.JoiningGroup}[class]
	return joinToken{kind, id, secret, group}
}

func (t joinToken) apply(ctx context.Context, client kubernetes.Interface) error {
	wanted := applycore.Secret("bootstrap-token-"+t.id, cluster.Namespace).
		WithType(core.SecretTypeBootstrapToken).
		WithLabels(map[string]string{roleLabel: t.kind}).
		WithStringData(map[string]string{
			"token-id":                       t.id,
			"token-secret":                   t.secret,
			"usage-bootstrap-authentication": "true",
			"usage-bootstrap-signing":        "true",
			"auth-extra-groups":              t.group,
		})
	secrets := client.CoreV1().Secrets(cluster.Namespace)
	if _, err := secrets.Apply(ctx, wanted, force); err != nil {
		return fmt.Errorf("keeping the join token of kind %s: %w", t.kind, err)
	}
	// What an earlier secret gave is taken back.
	old, err := secrets.List(ctx, meta.ListOptions{LabelSelector: roleLabel + "=" + t.kind})
	if err != nil {
		return fmt.Errorf("listing join tokens: %w", err)
	}
	for _, one := range old.Items {
		if one.Name != *wanted.Name {
			klog.Infof("the secret was changed: the join token of kind %s that it replaces goes", t.kind)
			if err := secrets.Delete(ctx, one.Name, meta.DeleteOptions{}); err != nil {
				return fmt.Errorf("deleting an old join token: %w", err)
			}
		}
	}
	return nil
}

// binding binds a ClusterRole in the whole cluster, or a Role of the same name in a namespace.
type binding struct {
	name, namespace, role string
	group, user           string
	rules                 []rbac.PolicyRule // of a role that is ours; nil for one of Kubernetes'
}

// bindings returns who may what; `administrators` is their group.
func bindings(administrators string) []binding {
	get := func(resource, name string) []rbac.PolicyRule {
		return []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: []string{name}, Verbs: []string{"get"}}}
	}
	watch := []string{"get", "list", "watch"}
	return []binding{
		{name: "skerry:administrators", role: "cluster-admin", group: administrators},
		{name: "skerry:kubelet-api", role: "system:kubelet-api-admin", user: kubeletClient},
		{name: "skerry:node-bootstrapper", role: "system:node-bootstrapper", group: cluster.JoiningGroup},
		{name: "skerry:node-proxier", role: "system:node-proxier", group: "system:nodes"},
		{name: "skerry:network-policy", role: "skerry:network-policy", group: "system:nodes", rules: []rbac.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "namespaces", "nodes"}, Verbs: watch},
			{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: watch},
		}},
		{name: "skerry:cluster-info", namespace: "kube-public", user: "system:anonymous", rules: get("configmaps", "cluster-info")},
		{name: "skerry:cluster", namespace: cluster.Namespace, group: "system:nodes", rules: get("configmaps", cluster.ConfigMap)},
		{name: "skerry:cluster-joining", namespace: cluster.Namespace, group: cluster.JoiningGroup, rules: get("configmaps", cluster.ConfigMap)},
		{name: "skerry:cluster-serving", namespace: cluster.Namespace, group: cluster.ServerGroup, rules: get("configmaps", cluster.ConfigMap)},
		{name: "skerry:server-bootstrap", namespace: cluster.Namespace, group: cluster.ServerGroup, rules: get("secrets", cluster.ServerSecret)},
	}
}

func (b binding) apply(ctx context.Context, client kubernetes.Interface) error {
	subject := applyrbac.Subject().WithAPIGroup(rbac.GroupName)
	if b.group != "" {
		subject.WithKind(rbac.GroupKind).WithName(b.group)
	} else {
		subject.WithKind(rbac.UserKind).WithName(b.user)
	}
	var rules []*applyrbac.PolicyRuleApplyConfiguration
	for _, rule := range b.rules {
		rules = append(rules, applyrbac.PolicyRule().WithAPIGroups(rule.APIGroups...).WithResources(rule.Resources...).
			WithResourceNames(rule.ResourceNames...).WithVerbs(rule.Verbs...))
	}
	if b.namespace != "" {
		if _, err := client.RbacV1().Roles(b.namespace).Apply(ctx, applyrbac.Role(b.name, b.namespace).WithRules(rules...), force); err != nil {
			return fmt.Errorf("keeping the role %s: %w", b.name, err)
		}
		reference := applyrbac.RoleRef().WithAPIGroup(rbac.GroupName).WithKind("Role").WithName(b.name)
		_, err := client.RbacV1().RoleBindings(b.namespace).Apply(ctx, applyrbac.RoleBinding(b.name, b.namespace).WithSubjects(subject).WithRoleRef(reference), force)
		return err
	}
	if b.rules != nil {
		if _, err := client.RbacV1().ClusterRoles().Apply(ctx, applyrbac.ClusterRole(b.role).WithRules(rules...), force); err != nil {
			return fmt.Errorf("keeping the role %s: %w", b.role, err)
		}
	}
	reference := applyrbac.RoleRef().WithAPIGroup(rbac.GroupName).WithKind("ClusterRole").WithName(b.role)
	_, err := client.RbacV1().ClusterRoleBindings().Apply(ctx, applyrbac.ClusterRoleBinding(b.name).WithSubjects(subject).WithRoleRef(reference), force)
	return err
}

// clusterInfo is the statement that the bootstrap signer signs: this CA is the cluster's.
func clusterInfo(server string, ca []byte) (map[string]string, error) {
	made := api.NewConfig()
	made.Clusters[""] = &api.Cluster{Server: server, CertificateAuthorityData: ca}
	text, err := clientcmd.Write(*made)
	if err != nil {
		return nil, fmt.Errorf("making the cluster's statement: %w", err)
	}
	return map[string]string{"kubeconfig": string(text)}, nil
}

// keepObjects brings the engine's own objects into the cluster; a failure is tried again, since the API
// server makes some of the namespaces only after it is ready.
func keepObjects(ctx context.Context, client kubernetes.Interface, s *secrets, facts cluster.Facts, server string, ca []byte) error {
	factsData, err := facts.Encode()
	if err != nil {
		return err
	}
	info, err := clusterInfo(server, ca)
	if err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		err := func() error {
			for _, one := range bindings(s.serverKeys.Administrators()) {
				if err := one.apply(ctx, client); err != nil {
					return fmt.Errorf("keeping %s: %w", one.name, err)
				}
			}
			for _, one := range s.joinTokens() {
				if err := one.apply(ctx, client); err != nil {
					return err
				}
			}
			configMaps := client.CoreV1()
			if _, err := configMaps.ConfigMaps(cluster.Namespace).Apply(ctx, applycore.ConfigMap(cluster.ConfigMap, cluster.Namespace).WithData(factsData), force); err != nil {
				return fmt.Errorf("keeping what nodes have to know: %w", err)
			}
			if _, err := configMaps.ConfigMaps("kube-public").Apply(ctx, applycore.ConfigMap("cluster-info", "kube-public").WithData(info), force); err != nil {
				return fmt.Errorf("keeping the cluster's statement: %w", err)
			}
			return nil
		}()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if attempt%10 == 9 {
			klog.Errorf("the engine's own objects: %v; trying again", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}
