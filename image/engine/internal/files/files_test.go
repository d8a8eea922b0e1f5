package files

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "file")
	for _, step := range []struct {
		content string
		mode    os.FileMode
	}{{"a", 0o600}, {"b", 0o600}, {"b", 0o644}} {
		if err := Write(path, []byte(step.content), step.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		content, _ := os.ReadFile(path)
		if err != nil || info.Mode().Perm() != step.mode || string(content) != step.content {
			t.Errorf("%+v: %v %q", step, info.Mode(), content)
		}
	}
	before, _ := os.Stat(path)
	if err := Write(path, []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("written though nothing changed")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
