//go:build tools

// Package flannel pins what the image and the tests build from the modules of others.
package flannel

import (
	_ "github.com/flannel-io/flannel"
)
