// Command pause is the first process of a pod: it holds the pod's namespaces and reaps orphans where
// the pod's containers share one process namespace.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Ignored children leave no zombies (sigaction(2), SA_NOCLDWAIT): nothing to do per child.
	signal.Ignore(syscall.SIGCHLD)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
