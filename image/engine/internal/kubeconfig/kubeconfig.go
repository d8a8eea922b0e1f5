// Package kubeconfig writes kubeconfig files.
package kubeconfig

import (
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"

	"skerry/engine/internal/files"
)

// Config is what a kubeconfig says. Either files or data of the credentials, or a bearer token.
type Config struct {
	Server                   string
	CA                       []byte
	CertificateFile, KeyFile string
	CertificateData, KeyData []byte
	BearerToken              string
}

// Write makes a kubeconfig file of a mode.
func Write(path string, mode os.FileMode, config Config) error {
	made := api.NewConfig()
	made.Clusters["default"] = &api.Cluster{Server: config.Server, CertificateAuthorityData: config.CA}
	made.AuthInfos["default"] = &api.AuthInfo{
		ClientCertificate:     config.CertificateFile,
		ClientKey:             config.KeyFile,
		ClientCertificateData: config.CertificateData,
		ClientKeyData:         config.KeyData,
		Token:                 config.BearerToken,
	}
	made.Contexts["default"] = &api.Context{Cluster: "default", AuthInfo: "default"}
	made.CurrentContext = "default"
	text, err := clientcmd.Write(*made)
	if err != nil {
		return fmt.Errorf("making the kubeconfig %s: %w", path, err)
	}
	return files.Write(path, text, mode)
}
