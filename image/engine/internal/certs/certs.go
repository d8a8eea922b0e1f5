// Package certs makes the cluster's certificate authorities and what they sign (ECDSA P-256).
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"skerry/engine/internal/files"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// A certificate is made anew at a start within this time before its end.
	renewBefore = 120 * 24 * time.Hour
	// Boards without a clock may start with one that is behind.
	clockSlack = 24 * time.Hour
)

// Authority is a CA with its key.
type Authority struct {
	Certificate *x509.Certificate
	PEM         []byte
	key         crypto.Signer
}

// Leaf says what a certificate is for.
type Leaf struct {
	Name          string
	Organisations []string
	Server        bool // also for servers; all are good for clients
	Names         []string
	Addresses     []string
}

// NewKey returns a new private key.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// EncodeKey returns a private key as PEM (PKCS 8).
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// EncodeCertificate returns a certificate as PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("not a signing key")
	}
	return signer, nil
}

// ParseCertificate returns the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// EnsureAuthority returns the CA `name` of a folder (name.crt, name.key); it is made if neither file is there.
func EnsureAuthority(folder, name string, now time.Time) (*Authority, error) {
	certificateFile, keyFile := filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")
	_, errCertificate := os.Stat(certificateFile)
	_, errKey := os.Stat(keyFile)
	if os.IsNotExist(errCertificate) && os.IsNotExist(errKey) {
		if err := makeAuthority(certificateFile, keyFile, "skerry-"+name, now); err != nil {
			return nil, err
		}
	} else if os.IsNotExist(errCertificate) {
		// The key is written first: a kill came between. Nothing was signed with it.
		if err := os.Remove(keyFile); err != nil {
			return nil, err
		}
		return EnsureAuthority(folder, name, now)
	}
	return LoadAuthority(folder, name)
}

func makeAuthority(certificateFile, keyFile, name string, now time.Time) error {
	key, err := NewKey()
	if err != nil {
		return err
	}
	number, err := serial()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          number,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s@%d", name, now.Unix())},
		NotBefore:             now.Add(-clockSlack),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("making the CA %s: %w", name, err)
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return err
	}
	if err := files.Write(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return files.Write(certificateFile, EncodeCertificate(der), 0o644)
}

// LoadAuthority returns the CA `name` of a folder.
func LoadAuthority(folder, name string) (*Authority, error) {
	certificateFile, keyFile := filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")
	text, err := os.ReadFile(certificateFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA %s: %w", name, err)
	}
	certificate, err := ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certificateFile, err)
	}
	keyText, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA %s: %w", name, err)
	}
	key, err := parseKey(keyText)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	return &Authority{certificate, text, key}, nil
}

// Issue returns a new key and certificate as PEM; the certificate is followed by its CA's.
func (a *Authority) Issue(leaf Leaf, now time.Time) (certificate, key []byte, err error) {
	private, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: number,
		Subject:      pkix.Name{CommonName: leaf.Name, Organization: leaf.Organisations},
		NotBefore:    now.Add(-clockSlack),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     leaf.Names,
	}
	if leaf.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, text := range leaf.Addresses {
		address := net.ParseIP(text)
		if address == nil {
			return nil, nil, fmt.Errorf("a certificate for %s: %q is no address", leaf.Name, text)
		}
		template.IPAddresses = append(template.IPAddresses, address)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the certificate of %s: %w", leaf.Name, err)
	}
	if key, err = EncodeKey(private); err != nil {
		return nil, nil, err
	}
	return append(EncodeCertificate(der), a.PEM...), key, nil
}

// EnsureLeaf makes path.crt and path.key anew unless they are good for `leaf` and for a while.
func (a *Authority) EnsureLeaf(path string, leaf Leaf, now time.Time) error {
	if text, err := os.ReadFile(path + ".crt"); err == nil {
		if old, err := ParseCertificate(text); err == nil && a.serves(old, leaf, now) {
			if _, err := os.Stat(path + ".key"); err == nil {
				return nil
			}
		}
	}
	certificate, key, err := a.Issue(leaf, now)
	if err != nil {
		return err
	}
	// The certificate goes first: a certificate without its key is what the test above notices.
	if err := os.Remove(path + ".key"); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := files.Write(path+".crt", certificate, 0o644); err != nil {
		return err
	}
	return files.Write(path+".key", key, 0o600)
}

func (a *Authority) serves(old *x509.Certificate, leaf Leaf, now time.Time) bool {
	var addresses []string
	for _, address := range old.IPAddresses {
		addresses = append(addresses, address.String())
	}
	return old.CheckSignatureFrom(a.Certificate) == nil &&
		now.After(old.NotBefore) && now.Add(renewBefore).Before(old.NotAfter) &&
		old.Subject.CommonName == leaf.Name &&
		same(old.Subject.Organization, leaf.Organisations) &&
		same(old.DNSNames, leaf.Names) && same(addresses, canonical(leaf.Addresses))
}

func canonical(addresses []string) []string {
	var made []string
	for _, address := range addresses {
		made = append(made, net.ParseIP(address).String())
	}
	return made
}

func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
