// Package files writes files that are there whole or not at all.
package files

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// Write puts content under path with a mode, durably; nobody sees a half-written file. A file that
// holds just that already is left alone, which spares SD cards.
func Write(path string, content []byte, mode os.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the folder of %s: %w", path, err)
	}
	scratch, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(scratch.Name())
	for _, step := range []func() error{
		func() error { return scratch.Chmod(mode) },
		func() error { _, err := scratch.Write(content); return err },
		scratch.Sync,
		scratch.Close,
		func() error { return os.Rename(scratch.Name(), path) },
		func() error { return syncFolder(filepath.Dir(path)) },
	} {
		if err := step(); err != nil {
			scratch.Close()
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
