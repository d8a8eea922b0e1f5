package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

const (
	newest = "1.1.0"
	// stdinMax is the most that the server takes as well.
	stdinMax      = 1 << 20
	defaultSocket = "/run/skerry-cni/cni.sock"
)

// The codes of errors that are made here; all others are the server's (CNI 1.1.0, "Error").
const (
	codeIO          = 5
	codeTryAgain    = 11
	codeUnavailable = 50
)

var (
	supported    = []string{"0.3.1", "0.4.0", "1.0.0", newest}
	versionShape = regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$`)
)

type configuration struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
}

type versions struct {
	CNIVersion string   `json:"cniVersion"`
	Supported  []string `json:"supportedVersions"`
}

type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Message    string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

type request struct {
	Environment map[string]string `json:"env"`
	Stdin       string            `json:"stdin"`
}

// environment returns the CNI_* variables.
func environment(all []string) map[string]string {
	found := map[string]string{}
	for _, one := range all {
		name, value, _ := strings.Cut(one, "=")
		if strings.HasPrefix(name, "CNI_") {
			found[name] = value
		}
	}
	return found
}

// call returns the exit status and what is to be printed.
func call(env map[string]string, in io.Reader) (int, []byte) {
	stdin, err := io.ReadAll(io.LimitReader(in, stdinMax+1))
	if err != nil {
		return refuse(newest, codeIO, "the network configuration can't be read from standard input", err)
	}
	if len(stdin) > stdinMax {
		err := fmt.Errorf("it has more than %d bytes", stdinMax)
		return refuse(newest, codeIO, "the network configuration is too long", err)
	}
	config := configuration{Socket: defaultSocket}
	// What is wrong with it otherwise is for the server to say.
	if err := json.Unmarshal(stdin, &config); err != nil {
		config = configuration{Socket: defaultSocket}
	}
	version := newest
	if versionShape.MatchString(config.CNIVersion) {
		version = config.CNIVersion
	}
	command := env["CNI_COMMAND"]
	if command == "VERSION" {
		return 0, encode(versions{version, supported})
	}
	asked := encode(request{env, string(stdin)})
	status, answer, err := exchange(config.Socket, asked, namespaceOf(command, env["CNI_NETNS"]))
	if err != nil {
		code := codeTryAgain
		if command == "STATUS" {
			code = codeUnavailable
		}
		return refuse(version, code, "the node's CNI server does not answer", err)
	}
	return status, answer
}

func refuse(version string, code int, message string, err error) (int, []byte) {
	return 1, encode(failure{version, code, message, err.Error()})
}

// encode returns the JSON of what always has one.
func encode(value any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return text
}
