package main

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// serve answers one request with what is given, and returns where, and what it was asked.
func serve(t *testing.T, answer []byte) (string, <-chan request) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	asked := make(chan request, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		var head [4]byte
		if _, err := io.ReadFull(connection, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(connection, body); err != nil {
			return
		}
		var one request
		if json.Unmarshal(body, &one) == nil {
			asked <- one
		}
		connection.Write(answer)
	}()
	return path, asked
}

func framed(status byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text)+1)), append([]byte{status}, text...)...)
}

func configured(path string) string {
	return `{"cniVersion":"1.0.0","name":"skerry","socket":"` + path + `"}`
}

func TestWhatTheServerSaysIsPrinted(t *testing.T) {
	for _, status := range []byte{0, 1} {
		path, asked := serve(t, framed(status, `{"said":"this"}`))
		stdin := configured(path)
		env := environment([]string{"CNI_COMMAND=DEL", "CNI_ARGS=A=B;C=D", "HOME=/root", "CNI_EMPTY="})
		code, out := call(env, strings.NewReader(stdin))
		if code != int(status) || string(out) != `{"said":"this"}` {
			t.Errorf("answered %d %s", code, out)
		}
		one := <-asked
		if one.Stdin != stdin || len(one.Environment) != 3 || one.Environment["CNI_ARGS"] != "A=B;C=D" {
			t.Errorf("asked %+v", one)
		}
	}
}

func TestVersionNeedsNobody(t *testing.T) {
	for stdin, want := range map[string]string{
		`{"cniVersion":"0.4.0","socket":"/nowhere"}`: "0.4.0",
		`{"cniVersion":"x"}`:                         newest,
		"no JSON":                                    newest,
		"":                                           newest,
	} {
		code, out := call(map[string]string{"CNI_COMMAND": "VERSION"}, strings.NewReader(stdin))
		var said versions
		if err := json.Unmarshal(out, &said); err != nil || code != 0 {
			t.Fatalf("%d %s: %v", code, out, err)
		}
		if said.CNIVersion != want || len(said.Supported) != 4 {
			t.Errorf("%q: %+v", stdin, said)
		}
	}
}

func refused(t *testing.T, command, stdin string) failure {
	t.Helper()
	code, out := call(map[string]string{"CNI_COMMAND": command}, strings.NewReader(stdin))
	var said failure
	if err := json.Unmarshal(out, &said); err != nil || code != 1 {
		t.Fatalf("%d %s: %v", code, out, err)
	}
	return said
}

func TestWithoutServerTheRuntimeIsToTryAgain(t *testing.T) {
	stdin := configured(filepath.Join(t.TempDir(), "none"))
	if said := refused(t, "ADD", stdin); said.Code != codeTryAgain || said.CNIVersion != "1.0.0" {
		t.Errorf("%+v", said)
	}
	if said := refused(t, "STATUS", stdin); said.Code != codeUnavailable {
		t.Errorf("%+v", said)
	}
}

func TestAServerThatBreaksOffOrTalksTooMuch(t *testing.T) {
	for _, answer := range [][]byte{nil, {0, 0}, {0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff, 1}, {0, 0, 0, 9, 0, 1}} {
		path, _ := serve(t, answer)
		if said := refused(t, "ADD", configured(path)); said.Code != codeTryAgain {
			t.Errorf("%v: %+v", answer, said)
		}
	}
}

func TestTooLongAConfiguration(t *testing.T) {
	if said := refused(t, "ADD", strings.Repeat(" ", stdinMax+1)); said.Code != codeIO {
		t.Errorf("%+v", said)
	}
}

func TestTheNamespaceIsOpenedForWhoNeedsOne(t *testing.T) {
	if file := namespaceOf("ADD", "/proc/self/ns/net"); file == nil {
		t.Error("not opened")
	} else {
		file.Close()
	}
	for _, one := range [][2]string{{"ADD", ""}, {"DEL", "/proc/self/ns/net"}, {"ADD", "/nowhere"}} {
		if file := namespaceOf(one[0], one[1]); file != nil {
			t.Errorf("%v was opened", one)
		}
	}
}
