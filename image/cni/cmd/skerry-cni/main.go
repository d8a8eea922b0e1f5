// Command skerry-cni is what a container runtime starts for each CNI call (CNI 1.1.0).
//
// It judges nothing: the CNI_* variables, what it reads, and the opened network namespace go to the
// node's CNI server, and the answer comes back. Only VERSION is answered here, since a
// runtime asks it before there is a server.
package main

import (
	"os"
)

func main() {
	status, out := call(environment(os.Environ()), os.Stdin)
	if _, err := os.Stdout.Write(out); err != nil {
		status = 1
	}
	os.Exit(status)
}
