"""Two releases in one network, while an update goes round: what each reads of the other's."""

from __future__ import annotations

import pytest

from appliance.ledger import entry as entry_module
from appliance.ledger.entry import ENTRY_MAX, EntryRecord, read_entry
from appliance.ledger.errors import EntryError
from appliance.ledger.state import Verdict
from provisioning import codec
from tests.fakes.ledger import NOW, entry, node, replica

A = node(1)


def test_the_next_release_reads_what_this_one_wrote_and_this_one_leaves_its_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = entry(A, "shared", "k", b"v", sequence=2)
    with monkeypatch.context() as next_release:
        both = {1: entry_module._READERS[1], 2: entry_module._READERS[1]}
        next_release.setattr(entry_module, "ENTRY_VERSION", 2)
        next_release.setattr(entry_module, "_READERS", both)
        here = replica([A])
        assert here.apply(read_entry(written.record), NOW).verdict is Verdict.ACCEPTED
        later = entry(A, "shared", "k", b"w", sequence=3)
        assert codec.decode(later.record, EntryRecord, limit=ENTRY_MAX).version == 2
        assert here.apply(later, NOW).verdict is Verdict.ACCEPTED
        counts = here.get("shared", "k", NOW)
        assert counts is not None
        assert counts.value == b"w"
    with pytest.raises(EntryError) as refused:
        read_entry(later.record)
    assert refused.value.newer, "nobody is blamed for it"
