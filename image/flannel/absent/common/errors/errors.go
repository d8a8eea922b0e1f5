// Package errors stands in for that of the absent client library.
package errors

// TencentCloudSDKError is an error of the cloud; nothing makes one here.
type TencentCloudSDKError struct{}

func (*TencentCloudSDKError) Error() string { return "an error of an absent cloud" }
