//go:build !cgo

// This file is Skerry's, added for builds without a C compiler: on amd64, Flannel's UDP backend is
// written in C. Skerry uses the VXLAN backend only.

package udp

import (
	"net"
	"os"

	"github.com/flannel-io/flannel/pkg/ip"
	log "k8s.io/klog/v2"
)

func runCProxy(*os.File, *net.UDPConn, *os.File, ip.IP4, int) {
	log.Fatal("this build of Flannel is without the udp backend; choose vxlan")
}

func setRoute(*os.File, ip.IP4Net, ip.IP4, int) {}

func removeRoute(*os.File, ip.IP4Net) {}

func stopProxy(*os.File) {}
