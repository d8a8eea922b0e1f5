// Package common stands in for the client library of a cloud that Skerry does not run in. Flannel's
// backend for that cloud names it, and the Go module proxy does not have it.
package common

// StringPtr returns a pointer to the text.
func StringPtr(text string) *string { return &text }

// StringPtrs returns pointers to the texts.
func StringPtrs(texts []string) []*string {
	pointers := make([]*string, len(texts))
	for place := range texts {
		pointers[place] = &texts[place]
	}
	return pointers
}

// BoolPtr returns a pointer to the value.
func BoolPtr(value bool) *bool { return &value }
