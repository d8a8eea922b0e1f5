package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	// answerMax bounds what is believed of the server.
	answerMax = 1 << 20
	// patience is more than any runtime waits for a plugin.
	patience = 4 * time.Minute
)

// namespaceOf opens the container's network namespace, so that it is the same one whatever becomes
// of its path, and wherever the server's own view of the file system ends. The server
// says what is wrong with one that can't be opened.
func namespaceOf(command, path string) *os.File {
	if path == "" || (command != "ADD" && command != "CHECK") {
		return nil
	}
	// A pipe or a terminal under this name must not hold us up.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return file
}

// exchange sends a request and returns the exit status and the text of the answer.
//
// Both ways: a big-endian 4-byte length and that many bytes. A request is JSON, with the opened
// namespace beside its first bytes; an answer is one byte of exit status and the text.
func exchange(path string, request []byte, namespace *os.File) (int, []byte, error) {
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, nil, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, fmt.Errorf("setting the deadline: %w", err)
	}
	framed := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
	framed = append(framed, request...)
	var rights []byte
	if namespace != nil {
		defer namespace.Close()
		rights = syscall.UnixRights(int(namespace.Fd()))
	}
	sent, _, err := connection.WriteMsgUnix(framed, rights, nil)
	if err == nil && sent < len(framed) {
		_, err = connection.Write(framed[sent:])
	}
	// Who is turned away is answered before all of the request was read.
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return 0, nil, fmt.Errorf("sending to %s: %w", path, err)
	}
	var head [4]byte
	if _, err := io.ReadFull(connection, head[:]); err != nil {
		return 0, nil, fmt.Errorf("reading from %s: %w", path, err)
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 1 || length > answerMax {
		return 0, nil, fmt.Errorf("%s answers with %d bytes", path, length)
	}
	answer := make([]byte, length)
	if _, err := io.ReadFull(connection, answer); err != nil {
		return 0, nil, fmt.Errorf("reading from %s: %w", path, err)
	}
	return int(answer[0]), answer[1:], nil
}
