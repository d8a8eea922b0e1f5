// Package notify tells the service manager that we are ready.
package notify

import (
	"net"
	"os"

	"k8s.io/klog/v2"
)

// Notifier knows where to tell it. Nil tells nobody.
type Notifier struct{ address *net.UnixAddr }

// New takes the address out of the environment: the components inside this process would use it too early.
func New() *Notifier {
	name := os.Getenv("NOTIFY_SOCKET")
	os.Unsetenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	return &Notifier{&net.UnixAddr{Name: name, Net: "unixgram"}}
}

// Ready is called once.
func (n *Notifier) Ready(status string) {
	klog.Infof("ready: %s", status)
	n.send("READY=1\nSTATUS=" + status + "\n")
}

// Status shows in the service manager.
func (n *Notifier) Status(status string) { n.send("STATUS=" + status + "\n") }

func (n *Notifier) send(text string) {
	if n == nil {
		return
	}
	connection, err := net.DialUnix("unixgram", nil, n.address)
	if err != nil {
		klog.Errorf("telling the service manager: %v", err)
		return
	}
	defer connection.Close()
	if _, err := connection.Write([]byte(text)); err != nil {
		klog.Errorf("telling the service manager: %v", err)
	}
}
