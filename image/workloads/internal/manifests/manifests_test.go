// Reads the add-ons' manifests as the API server would: every field has to be one of its kind.
package manifests

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"
)

const folder = "../../../../rootfs_kubernetes/usr/share/skerry/manifests"

// for clusters that do not run our image
const foreign = "../../../foreign/skerry.yaml"

var filledIn = map[string]string{
	"@CLUSTER_DNS@":    "10.43.0.10",
	"@CLUSTER_DOMAIN@": "cluster.local",
	"@DATA_DIR@":       "/data/kubernetes",
}

func kinds() map[string]any {
	return map[string]any{
		"ClusterRole":                      &rbac.ClusterRole{},
		"ClusterRoleBinding":               &rbac.ClusterRoleBinding{},
		"ConfigMap":                        &core.ConfigMap{},
		"DaemonSet":                        &apps.DaemonSet{},
		"Deployment":                       &apps.Deployment{},
		"Namespace":                        &core.Namespace{},
		"Pod":                              &core.Pod{},
		"Role":                             &rbac.Role{},
		"RoleBinding":                      &rbac.RoleBinding{},
		"Service":                          &core.Service{},
		"ServiceAccount":                   &core.ServiceAccount{},
		"StorageClass":                     &storage.StorageClass{},
		"ValidatingAdmissionPolicy":        &admission.ValidatingAdmissionPolicy{},
		"ValidatingAdmissionPolicyBinding": &admission.ValidatingAdmissionPolicyBinding{},
	}
}

func decode(t *testing.T, document string) any {
	t.Helper()
	text, err := yaml.YAMLToJSONStrict([]byte(document))
	if err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	var head struct{ Kind string }
	if err := json.Unmarshal(text, &head); err != nil {
		t.Fatal(err)
	}
	object := kinds()[head.Kind]
	if object == nil {
		t.Fatalf("no kind %q is known here:\n%s", head.Kind, document)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(object); err != nil {
		t.Fatalf("%s: %v", head.Kind, err)
	}
	return object
}

func objects(t *testing.T, name string) []any {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for place, value := range filledIn {
		text = strings.ReplaceAll(text, place, value)
	}
	if left := regexp.MustCompile(`@[A-Z_]+@`).FindString(text); left != "" {
		t.Fatalf("%s wants %s, which this test does not know", name, left)
	}
	var found []any
	for _, document := range strings.Split(text, "\n---\n") {
		found = append(found, decode(t, document))
	}
	return found
}

func TestEveryFieldIsOneOfItsKind(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if len(objects(t, filepath.Base(file))) < 5 {
			t.Errorf("%s has too little in it", file)
		}
	}
}

func TestPodsRunWithLittle(t *testing.T) {
	for _, name := range []string{"coredns.yaml", "local-path.yaml"} {
		for _, object := range objects(t, name) {
			deployment, ok := object.(*apps.Deployment)
			if !ok {
				continue
			}
			pod := deployment.Spec.Template.Spec
			if pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot {
				t.Errorf("%s may run as root", deployment.Name)
			}
			if pod.HostNetwork || pod.HostPID || pod.HostIPC {
				t.Errorf("%s has a name space of the node", deployment.Name)
			}
			for _, container := range pod.Containers {
				context := container.SecurityContext
				if context.AllowPrivilegeEscalation == nil || *context.AllowPrivilegeEscalation ||
					!*context.ReadOnlyRootFilesystem || context.Capabilities.Drop[0] != "ALL" ||
					len(context.Capabilities.Add) > 0 {
					t.Errorf("%s: %+v", container.Name, context)
				}
				if container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Memory().Value() > 64<<20 {
					t.Errorf("%s does not fit a small node: %+v", container.Name, container.Resources)
				}
				if !strings.HasPrefix(container.Image, "skerry.local/") || !strings.HasSuffix(container.Image, ":1") {
					t.Errorf("%s is not of the node's own images", container.Image)
				}
			}
		}
	}
}

func TestNobodyMayReadSecretsOrEverything(t *testing.T) {
	for _, name := range []string{"coredns.yaml", "local-path.yaml"} {
		for _, object := range objects(t, name) {
			var rules []rbac.PolicyRule
			switch role := object.(type) {
			case *rbac.ClusterRole:
				rules = role.Rules
			case *rbac.Role:
				rules = role.Rules
			}
			for _, rule := range rules {
				for _, word := range append(append([]string{}, rule.Resources...), rule.Verbs...) {
					if word == "*" || word == "secrets" || word == "impersonate" {
						t.Errorf("%s: %+v", name, rule)
					}
				}
			}
		}
	}
}

func TestTheHelperPodIsAPod(t *testing.T) {
	for _, object := range objects(t, "local-path.yaml") {
		config, ok := object.(*core.ConfigMap)
		if !ok {
			continue
		}
		pod := decode(t, config.Data["helperPod.yaml"]).(*core.Pod)
		// the provisioner reads this container's log by its name
		if pod.Spec.Containers[0].Name != "helper-pod" || *pod.Spec.AutomountServiceAccountToken {
			t.Errorf("%+v", pod.Spec)
		}
		var paths struct {
			NodePathMap []struct {
				Node  string
				Paths []string
			}
		}
		if err := json.Unmarshal([]byte(config.Data["config.json"]), &paths); err != nil {
			t.Fatal(err)
		}
		if paths.NodePathMap[0].Paths[0] != "/data/kubernetes/storage" {
			t.Errorf("%+v", paths)
		}
		return
	}
	t.Error("there is no ConfigMap")
}

func TestTheNameServersAddressIsTheClustersDNS(t *testing.T) {
	for _, object := range objects(t, "coredns.yaml") {
		if service, ok := object.(*core.Service); ok {
			if service.Spec.ClusterIP != "10.43.0.10" || service.Name != "kube-dns" {
				t.Errorf("%+v", service.Spec)
			}
			return
		}
	}
	t.Error("there is no Service")
}

func TestTheDaemonSetForOthers(t *testing.T) {
	content, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(content), "\n---\n") {
		set, ok := decode(t, document).(*apps.DaemonSet)
		if !ok {
			continue
		}
		volumes := map[string]bool{}
		for _, volume := range set.Spec.Template.Spec.Volumes {
			volumes[volume.Name] = true
		}
		pod := set.Spec.Template.Spec
		for _, container := range append(pod.InitContainers, pod.Containers...) {
			for _, mount := range container.VolumeMounts {
				if !volumes[mount.Name] {
					t.Errorf("%s wants a volume %s", container.Name, mount.Name)
				}
			}
		}
		return
	}
	t.Error("there is no DaemonSet")
}
