package addons

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	objects, err := Parse([]byte("# a comment\n---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: here}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	var found []Reference
	for _, object := range objects {
		found = append(found, reference(object))
	}
	if want := []Reference{{"v1", "ConfigMap", "here", "a"}, {"v1", "Secret", "", "b"}}; !reflect.DeepEqual(found, want) {
		t.Errorf("got %v", found)
	}
	for _, bad := range []string{"a: [", "apiVersion: v1\nkind: ConfigMap\n", "kind: ConfigMap\nmetadata: {name: a}\n", "just words"} {
		if objects, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q passed: %v", bad, objects)
		}
	}
}

func TestWhatIsGoneGoesLastFirst(t *testing.T) {
	a, b, c := Reference{Name: "a"}, Reference{Name: "b"}, Reference{Name: "c"}
	if got := Gone([]Reference{a, b, c}, []Reference{b}); !slices.Equal(got, []Reference{c, a}) {
		t.Errorf("got %v", got)
	}
	if got := Gone(nil, []Reference{a}); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestWhichFilesAreManifests(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml", "f.yaml.skip"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := manifests(folder)
	var names []string
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	if err != nil || strings.Join(names, " ") != "a b c" {
		t.Errorf("%v, %v", names, err)
	}
}
