package token

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const secret = "0123456789abcdef"

func keys(t *testing.T, text string) Keys {
	t.Helper()
	made, err := Derive(text)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestParse(t *testing.T) {
	whole := Format([]byte("a CA"), Server, secret)
	parsed, err := Parse(whole)
	if err != nil || parsed.Secret != secret || parsed.CAHash != HashCA([]byte("a CA")) || parsed.OnlyAgent() {
		t.Errorf("%v, %v", parsed, err)
	}
	if parsed, err := Parse(Format([]byte("a CA"), Agent, secret)); err != nil || !parsed.OnlyAgent() {
		t.Errorf("%v, %v", parsed, err)
	}
	if parsed, err := Parse(secret); err != nil || parsed.CAHash != "" || parsed.Secret != secret {
		t.Errorf("%v, %v", parsed, err)
	}
	for _, bad := range []string{"", "short", "K10abc::server:" + secret, strings.ToUpper(whole), whole[:70], strings.Replace(whole, "server", "owner", 1), Format(nil, Agent, "short")} {
		if _, err := Parse(bad); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if shown := fmt.Sprintf("%v %+v %s", parsed, parsed, parsed); strings.Contains(shown, secret) {
		t.Errorf("the secret is shown: %s", shown)
	}
}

func TestBootstrapTokens(t *testing.T) {
	id, password := keys(t, secret).Bootstrap(Agent)
	if !regexp.MustCompile(`^[a-z0-9]{6}$`).MatchString(id) || !regexp.MustCompile(`^[a-z0-9]{16}$`).MatchString(password) {
		t.Errorf("%q %q", id, password)
	}
	if again, samePassword := keys(t, secret).Bootstrap(Agent); again != id || samePassword != password {
		t.Error("not the same twice")
	}
	otherID, otherPassword := keys(t, secret).Bootstrap(Server)
	if otherID == id || otherPassword == password {
		t.Error("the classes have the same token")
	}
}

func TestAnotherSecretHasOtherAdministrators(t *testing.T) {
	group := keys(t, secret).Administrators()
	if !strings.HasPrefix(group, "skerry:administrators:") || group != keys(t, secret).Administrators() {
		t.Error(group)
	}
	if keys(t, secret+"x").Administrators() == group {
		t.Error("who administered before still does")
	}
}

func TestSealing(t *testing.T) {
	sealed, err := keys(t, secret).Seal("purpose", []byte("the keys"))
	if err != nil || bytes.Contains(sealed, []byte("the keys")) {
		t.Fatalf("%x, %v", sealed, err)
	}
	if plain, err := keys(t, secret).Open("purpose", sealed); err != nil || string(plain) != "the keys" {
		t.Errorf("%q, %v", plain, err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another secret":  func() ([]byte, error) { return keys(t, secret+"x").Open("purpose", sealed) },
		"another purpose": func() ([]byte, error) { return keys(t, secret).Open("other", sealed) },
		"a changed byte": func() ([]byte, error) {
			return keys(t, secret).Open("purpose", append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1))
		},
		"too short": func() ([]byte, error) { return keys(t, secret).Open("purpose", sealed[:5]) },
	} {
		if plain, err := open(); err == nil {
			t.Errorf("%s opened it: %q", name, plain)
		}
	}
}
