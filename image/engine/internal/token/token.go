// Package token reads the secrets with which nodes join, and derives from them what goes over the wire.
//
// A full token is `K10` + SHA-256 of the server's CA (the PEM file, hexadecimal) + `::` + class + `:` +
// secret, as k3s writes it. A plain secret works too; then the CA is proved by a signature of which only
// those who know the secret are capable.
package token

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"

	"golang.org/x/crypto/scrypt"
)

// Class is what the bearer may become.
type Class string

// Servers get the cluster's keys; agents get a node's certificate and nothing else.
const (
	Server Class = "server"
	Agent  Class = "agent"
)

// ShortestSecret guards against guessing: what a secret signs can be had by anyone, and tried at home.
const ShortestSecret = 16

// Token is a parsed token. Secret must not be shown.
type Token struct {
	CAHash string // hexadecimal, empty for a plain secret
	Secret string
	full   string
}

var full = regexp.MustCompile(`^K10([0-9a-f]{64})::(server|node):(.+)$`)

// Parse reads a token. Its errors do not repeat it.
func Parse(text string) (Token, error) {
	parsed := Token{Secret: text}
	if len(text) >= 3 && text[:3] == "K10" {
		found := full.FindStringSubmatch(text)
		if found == nil {
			return Token{}, errors.New("the token begins with K10 but is not K10<64 hexadecimal digits>::server:<secret>")
		}
		parsed = Token{CAHash: found[1], Secret: found[3], full: found[2]}
	}
	if len(parsed.Secret) < ShortestSecret {
		return Token{}, fmt.Errorf("the token's secret is shorter than %d characters", ShortestSecret)
	}
	return parsed, nil
}

// OnlyAgent says that the token's own words give it to agents.
func (t Token) OnlyAgent() bool { return t.full == "node" }

// String never shows the secret.
func (t Token) String() string { return "token(" + t.CAHash + ")" }

// Format returns the full token of a class for a CA.
func Format(caPEM []byte, class Class, secret string) string {
	word := map[Class]string{Server: "server", Agent: "node"}[class]
	return fmt.Sprintf("K10%s::%s:%s", HashCA(caPEM), word, secret)
}

// HashCA returns what stands in a token for a CA.
func HashCA(caPEM []byte) string {
	sum := sha256.Sum256(caPEM)
	return hex.EncodeToString(sum[:])
}

// New returns a new random secret.
func New() string {
	return hex.EncodeToString(random(16))
}

func random(size int) []byte {
	bytes := make([]byte, size)
	rand.Read(bytes) // cannot fail since Go 1.24
	return bytes
}

// Keys are derived from a secret; making them is slow on purpose (about 50 ms).
type Keys struct{ master []byte }

// Derive stretches a secret.
func Derive(secret string) (Keys, error) {
	master, err := scrypt.Key([]byte(secret), []byte("skerry engine token v1"), 1<<14, 8, 1, 32)
	if err != nil {
		return Keys{}, fmt.Errorf("deriving keys: %w", err)
	}
	return Keys{master}, nil
}

func (k Keys) expand(label string, size int) []byte {
	key, err := hkdf.Expand(sha256.New, k.master, label, size)
	if err != nil {
		panic(err) // sizes are constants
	}
	return key
}

const alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

// text returns characters of the alphabet, each equally likely.
func (k Keys) text(label string, size int) string {
	made := make([]byte, 0, size)
	for _, one := range k.expand(label, 8*size) {
		if one < 252 && len(made) < size { // 252 = 7 * 36
			made = append(made, alphabet[one%36])
		}
	}
	if len(made) < size {
		panic("8 bytes per character ran out") // about one in 2^90
	}
	return string(made)
}

// Bootstrap returns the id and secret of the Kubernetes bootstrap token of a class.
func (k Keys) Bootstrap(class Class) (id, secret string) {
	return k.text("bootstrap id "+string(class), 6), k.text("bootstrap secret "+string(class), 16)
}

// Administrators returns the group of those who administer the cluster while its secret is this one: with
// a new secret, certificates of the group before have no rights any more.
func (k Keys) Administrators() string {
	return "skerry:administrators:" + k.text("administrators", 16)
}

// Seal encrypts for whoever knows the secret; `purpose` is authenticated with it.
func (k Keys) Seal(purpose string, plain []byte) ([]byte, error) {
	aead, err := k.aead(purpose)
	if err != nil {
		return nil, err
	}
	nonce := random(aead.NonceSize())
	return aead.Seal(nonce, nonce, plain, []byte(purpose)), nil
}

// Open decrypts what Seal made.
func (k Keys) Open(purpose string, sealed []byte) ([]byte, error) {
	aead, err := k.aead(purpose)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, errors.New("sealed data is too short")
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], []byte(purpose))
	if err != nil {
		return nil, errors.New("sealed with another secret, or damaged")
	}
	return plain, nil
}

func (k Keys) aead(purpose string) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.expand("seal "+purpose, 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
