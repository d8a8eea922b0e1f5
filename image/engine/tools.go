//go:build tools

// Package engine names what is built of the same module besides the engine: the image of Kubernetes'
// own tests and the tests themselves.
package engine

import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
