// Package addons applies the manifests of a folder, at start and when they change.
package addons

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/klog/v2"

	"skerry/engine/internal/files"
)

const (
	fieldManager = "skerry-manifests"
	lookEvery    = 3 * time.Second
	// A manifest that failed is tried again after this long, or when it changes.
	tryAgain = 15 * time.Second
)

// Settings name the folder of manifests, the file in which we remember what came from which, and the
// manifests (file names without .yaml) that are not wanted.
type Settings struct {
	Folder, State string
	Disabled      []string
}

// Reference names an object.
type Reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// applied is what is known of a manifest: the content's hash, and the objects that came from it.
type applied struct {
	Hash    string      `json:"hash"`
	Objects []Reference `json:"objects"`
}

// Parse returns the objects of a manifest: several documents, lists taken apart.
func Parse(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) == 0 {
			continue
		}
		if object.IsList() {
			list, err := object.ToList()
			if err != nil {
				return nil, err
			}
			for i := range list.Items {
				objects = append(objects, &list.Items[i])
			}
		} else {
			objects = append(objects, object)
		}
		for _, one := range objects {
			if one.GetKind() == "" || one.GetAPIVersion() == "" || one.GetName() == "" {
				return nil, fmt.Errorf("an object lacks apiVersion, kind or metadata.name")
			}
		}
	}
}

func reference(object *unstructured.Unstructured) Reference {
	return Reference{object.GetAPIVersion(), object.GetKind(), object.GetNamespace(), object.GetName()}
}

// Gone returns what was there before and is not now, last first: what was made last goes first.
func Gone(before, now []Reference) []Reference {
	var gone []Reference
	for _, one := range slices.Backward(before) {
		if !slices.Contains(now, one) {
			gone = append(gone, one)
		}
	}
	return gone
}

type keeper struct {
	settings Settings
	client   dynamic.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	state    map[string]applied
	retry    map[string]time.Time
}

// Run keeps the cluster as the folder says until the context ends.
func Run(ctx context.Context, config *rest.Config, settings Settings) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	lookup, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return err
	}
	k := &keeper{settings, client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(lookup)), map[string]applied{}, map[string]time.Time{}}
	if text, err := os.ReadFile(settings.State); err == nil {
		if err := json.Unmarshal(text, &k.state); err != nil {
			klog.Warningf("%s is damaged, every manifest is applied again: %v", settings.State, err)
			k.state = map[string]applied{}
		}
	}
	// Someone may have changed the objects while we were away: all are applied once at a start.
	for name, one := range k.state {
		one.Hash = ""
		k.state[name] = one
	}
	if err := os.MkdirAll(settings.Folder, 0o700); err != nil {
		return fmt.Errorf("making the folder of manifests: %w", err)
	}
	for {
		if err := k.look(ctx); err != nil {
			klog.Errorf("manifests: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// manifests returns the content of the folder's manifests by their names without the ending.
func manifests(folder string) (map[string][]byte, error) {
	found := map[string][]byte{}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		extension := filepath.Ext(entry.Name())
		if strings.HasPrefix(entry.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, extension) {
			continue
		}
		if _, err := os.Stat(filepath.Join(folder, entry.Name()+".skip")); err == nil {
			continue
		}
		content, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			return nil, err
		}
		found[strings.TrimSuffix(entry.Name(), extension)] = content
	}
	return found, nil
}

func (k *keeper) look(ctx context.Context) error {
	found, err := manifests(k.settings.Folder)
	if err != nil {
		return err
	}
	for name, content := range found {
		sum := sha256.Sum256(content)
		hash := hex.EncodeToString(sum[:])
		unwanted := slices.Contains(k.settings.Disabled, name)
		if unwanted {
			hash = "disabled " + hash
		}
		if k.state[name].Hash == hash || time.Now().Before(k.retry[name]) {
			continue
		}
		if err := k.settle(ctx, name, content, hash, unwanted); err != nil {
			klog.Errorf("manifest %s: %v; trying again in %s", name, err, tryAgain)
			k.retry[name] = time.Now().Add(tryAgain)
			k.mapper.Reset()
			continue
		}
		delete(k.retry, name)
	}
	for name, one := range k.state {
		if _, there := found[name]; !there {
			klog.Infof("manifest %s is gone: its %d objects go", name, len(one.Objects))
			if err := k.remove(ctx, Gone(one.Objects, nil)); err != nil {
				return fmt.Errorf("removing what came from %s: %w", name, err)
			}
			delete(k.state, name)
			if err := k.remember(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *keeper) settle(ctx context.Context, name string, content []byte, hash string, unwanted bool) error {
	objects, err := Parse(content)
	if err != nil {
		return err
	}
	before := k.state[name].Objects
	var now []Reference
	if unwanted {
		for _, object := range objects {
			if one := reference(object); !slices.Contains(before, one) {
				before = append(before, one)
			}
		}
	} else {
		for _, object := range objects {
			if err := k.apply(ctx, object); err != nil {
				return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
			}
			now = append(now, reference(object))
		}
		klog.Infof("manifest %s: %d objects applied", name, len(now))
	}
	// What is new is remembered before what is old goes, so that a kill between forgets nothing.
	k.state[name] = applied{"", append(slices.Clone(now), Gone(before, now)...)}
	if err := k.remember(); err != nil {
		return err
	}
	if err := k.remove(ctx, Gone(before, now)); err != nil {
		return err
	}
	k.state[name] = applied{hash, now}
	return k.remember()
}

func (k *keeper) remember() error {
	text, err := json.MarshalIndent(k.state, "", " ")
	if err != nil {
		return err
	}
	return files.Write(k.settings.State, text, 0o600)
}

func (k *keeper) resource(one Reference) (dynamic.ResourceInterface, error) {
	group, err := schema.ParseGroupVersion(one.APIVersion)
	if err != nil {
		return nil, err
	}
	mapping, err := k.mapper.RESTMapping(group.WithKind(one.Kind).GroupKind(), group.Version)
	if err != nil {
		return nil, err
	}
	resource := k.client.Resource(mapping.Resource)
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return resource, nil
	}
	if one.Namespace == "" {
		one.Namespace = metav1.NamespaceDefault
	}
	return resource.Namespace(one.Namespace), nil
}

func (k *keeper) apply(ctx context.Context, object *unstructured.Unstructured) error {
	resource, err := k.resource(reference(object))
	if err != nil {
		return err
	}
	_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

func (k *keeper) remove(ctx context.Context, gone []Reference) error {
	for _, one := range gone {
		resource, err := k.resource(one)
		if meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return err
		}
		background := metav1.DeletePropagationBackground
		if err := resource.Delete(ctx, one.Name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting %s %s: %w", one.Kind, one.Name, err)
		}
	}
	return nil
}
