package server

import (
	"slices"
	"testing"
)

func TestAServerIsLeftBehindWhenItWasGoneInEachOfSixLooks(t *testing.T) {
	missed := misses{}
	for look := range missesAllowed {
		if late := missed.again([]string{"one", "two"}); late != nil {
			t.Fatalf("look %d: %v", look, late)
		}
	}
	if late := missed.again([]string{"one"}); !slices.Equal(late, []string{"one"}) {
		t.Fatalf("%v", late)
	}
	if late := missed.again([]string{"two"}); late != nil {
		t.Fatalf("it was there in between: %v", late)
	}
}
