package datastore

import "testing"

func TestAMembersNameHasItsNodes(t *testing.T) {
	for name, node := range map[string]string{"one-01234567": "one", "a-b-89abcdef": "a-b", MemberPrefix("x") + "00000000": "x"} {
		if found, ok := nodeOf(name); !ok || found != node {
			t.Errorf("%q: %q", name, found)
		}
	}
	for _, name := range []string{"", "one", "-01234567", "one_01234567", "one-0123456"} {
		if found, ok := nodeOf(name); ok {
			t.Errorf("%q: %q", name, found)
		}
	}
}
