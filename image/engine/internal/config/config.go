package config

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DefaultFile is read if it is there and --config names no other.
const DefaultFile = "/etc/rancher/k3s/config.yaml"

// DefaultKubeconfig is the administrator's, unless --write-kubeconfig names another.
const DefaultKubeconfig = "/etc/rancher/k3s/k3s.yaml"

// ErrHelp says that the call asked for help.
var ErrHelp = errors.New("help was asked for")

// UsageError is a wrong word in the call or the file; the program ends with status 2.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

func wrong(format string, values ...any) error {
	return &UsageError{fmt.Sprintf(format, values...)}
}

type setting struct {
	values []string
	where  string
}

// Parse returns the options of a call: `words` are those after the command. Files are read through
// `read`. Errors are of type *UsageError, or ErrHelp.
func Parse(role Role, words []string, read func(string) ([]byte, error)) (*Options, error) {
	called, file, err := parseWords(role, words)
	if err != nil {
		return nil, err
	}
	named := file != ""
	if !named {
		file = DefaultFile
	}
	content, err := read(file)
	switch {
	case errors.Is(err, os.ErrNotExist) && !named:
	case err != nil:
		return nil, wrong("the configuration %s cannot be read: %v", file, err)
	}
	settings, err := parseFile(role, file, content)
	if err != nil {
		return nil, err
	}
	options := defaults(role)
	for i := range table {
		entry := &table[i]
		values := settings[entry.name].values
		if entry.kind == list || entry.kind == extra {
			values = append(values, called[entry.name]...)
		} else if len(called[entry.name]) > 0 {
			values = called[entry.name]
		}
		if len(values) > 0 {
			entry.set(options, values)
		}
	}
	return options, options.complete(read)
}

func known(role Role, name, where string) (*option, error) {
	entry := find(name)
	if entry == nil {
		return nil, wrong("unknown option %q (%s); `%s --help` lists all", name, where, role)
	}
	if entry.serverOnly && role == Agent {
		return nil, wrong("option %q (%s) is for servers, this is an agent", name, where)
	}
	return entry, nil
}

func split(entry *option, value string) []string {
	if entry.kind != list {
		return []string{value}
	}
	var parts []string
	for _, part := range strings.Split(value, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

func isBool(value string) bool { return value == "true" || value == "false" }

// parseWords returns the options of the call and the file that --config or -c names.
func parseWords(role Role, words []string) (map[string][]string, string, error) {
	found := map[string][]string{}
	file := ""
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "--help" || word == "-h" || word == "help" {
			return nil, "", ErrHelp
		}
		name, isOption := strings.CutPrefix(word, "--")
		if short := map[string]string{"-t": "token", "-s": "server", "-d": "data-dir", "-c": "config"}[word]; short != "" {
			name, isOption = short, true
		}
		if !isOption || name == "" {
			return nil, "", wrong("unexpected word %q after %q", word, role)
		}
		name, value, hasValue := strings.Cut(name, "=")
		entry := &option{name: "config"}
		if name != "config" {
			var err error
			if entry, err = known(role, name, "command line"); err != nil {
				return nil, "", err
			}
		}
		if !hasValue && entry.kind == flag {
			value = "true"
			if i+1 < len(words) && isBool(words[i+1]) {
				i++
				value = words[i]
			}
		} else if !hasValue {
			if i++; i >= len(words) {
				return nil, "", wrong("option %q needs a value", name)
			}
			value = words[i]
		}
		if entry.kind == flag && !isBool(value) {
			return nil, "", wrong("option %q is true or false, not %q", name, value)
		}
		if name == "config" {
			file = value
			continue
		}
		found[name] = append(found[name], split(entry, value)...)
	}
	return found, file, nil
}

func parseFile(role Role, file string, content []byte) (map[string]setting, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, wrong("the configuration %s is no YAML: %v", file, err)
	}
	found := map[string]setting{}
	if len(document.Content) == 0 {
		return found, nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, wrong("the configuration %s has to be a mapping of options", file)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		// k3s appends to a list under the name with a plus; ours always does
		name := strings.TrimSuffix(root.Content[i].Value, "+")
		where := fmt.Sprintf("%s line %d", file, root.Content[i].Line)
		entry, err := known(role, name, where)
		if err != nil {
			return nil, err
		}
		if _, twice := found[name]; twice {
			return nil, wrong("option %q stands twice (%s)", name, where)
		}
		values, err := fileValues(entry, root.Content[i+1], where)
		if err != nil {
			return nil, err
		}
		found[name] = setting{values, where}
	}
	return found, nil
}

func fileValues(entry *option, node *yaml.Node, where string) ([]string, error) {
	isList := entry.kind == list || entry.kind == extra
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return nil, nil
	case node.Kind == yaml.ScalarNode:
		if entry.kind == flag && !isBool(node.Value) {
			return nil, wrong("option %q is true or false (%s)", entry.name, where)
		}
		return split(entry, node.Value), nil
	case node.Kind == yaml.SequenceNode && isList:
		var values []string
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, wrong("option %q holds something that is no text (%s)", entry.name, where)
			}
			values = append(values, split(entry, item.Value)...)
		}
		return values, nil
	}
	return nil, wrong("option %q takes one value (%s)", entry.name, where)
}

// Help returns the text of `server --help` or `agent --help`.
func Help(role Role) string {
	var text strings.Builder
	fmt.Fprintf(&text, "usage: skerry-engine %s [OPTIONS]\n\n", role)
	fmt.Fprintf(&text, "  --%-30s YAML file with the same names (default %s)\n", "config FILE", DefaultFile)
	for _, entry := range table {
		if entry.serverOnly && role == Agent {
			continue
		}
		fmt.Fprintf(&text, "  --%-30s %s\n", entry.name, entry.help)
	}
	return text.String()
}
