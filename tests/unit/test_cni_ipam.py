"""Pod addresses: nobody's twice, nothing lost, whatever the order."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.cni.errors import CniError, Code
from appliance.cni.ipam import (
    STATE_MAX,
    IpamError,
    Lease,
    PodRange,
    State,
    allocate,
    at_boot,
    collect,
    dump,
    empty,
    hold,
    load,
    release,
)
from appliance.cni.spec import Attachment
from provisioning import codec

BOTH = (PodRange.of("10.42.1.0/24"), PodRange.of("fd42:0:0:1::/64"))
SMALL = (PodRange.of("10.42.1.0/29", reserved=["10.42.1.3"]), PodRange.of("fd42::/120"))


def pod(number: int, network: str = "skerry", ifname: str = "eth0") -> Attachment:
    return Attachment(network, f"pod{number}", ifname)


def texts(lease: Lease) -> list[str]:
    return [str(one) for one in lease.addresses]


def test_the_first_pod_comes_behind_the_gateway_in_both_families() -> None:
    state, lease = allocate(empty("boot-1"), BOTH, pod(1))
    assert texts(lease) == ["10.42.1.2", "fd42:0:0:1::2"]
    _, second = allocate(state, BOTH, pod(1, ifname="eth1"))
    assert texts(second) == ["10.42.1.3", "fd42:0:0:1::3"]


def test_a_repeated_add_has_the_same_addresses() -> None:
    state, lease = allocate(empty("boot-1"), BOTH, pod(1))
    again, same = allocate(state, BOTH, pod(1))
    assert same == lease
    assert again is state


def test_a_released_address_comes_back_last() -> None:
    state, first = allocate(empty("boot-1"), BOTH, pod(1))
    state = release(state, pod(1))
    assert state.leases == ()
    state, second = allocate(state, BOTH, pod(2))
    assert texts(second)[0] == "10.42.1.3"
    seen = [texts(second)[0]]
    for number in range(3, 255):
        state, lease = allocate(state, BOTH, pod(number))
        seen.append(texts(lease)[0])
    assert seen[-1] == texts(first)[0]
    # NodeBits 8: 253 pods.
    assert len(set(seen)) == len(seen) == 253
    with pytest.raises(CniError) as caught:
        allocate(state, BOTH, pod(999))
    assert caught.value.code is Code.NO_ADDRESS
    assert "10.42.1.0/24" in str(caught.value)


def test_reserved_addresses_are_nobodys_and_an_exhausted_family_takes_none_of_the_other() -> None:
    state = empty("boot-1")
    given = []
    for number in range(4):
        state, lease = allocate(state, SMALL, pod(number))
        given.append(texts(lease)[0])
    assert given == ["10.42.1.2", "10.42.1.4", "10.42.1.5", "10.42.1.6"]
    with pytest.raises(CniError):
        allocate(state, (SMALL[1], SMALL[0]), pod(9))
    assert state.find(pod(9)) is None


def test_a_reboot_voids_every_lease_and_keeps_the_place() -> None:
    state, _ = allocate(empty("boot-1"), BOTH, pod(1))
    assert at_boot(state, "boot-1") is state
    after = at_boot(load(dump(state)), "boot-2")
    assert after.leases == ()
    _, lease = allocate(after, BOTH, pod(1))
    assert texts(lease) == ["10.42.1.3", "fd42:0:0:1::3"]


def test_another_range_moves_only_what_it_cannot_keep() -> None:
    state, lease = allocate(empty("boot-1"), BOTH[:1], pod(1))
    state, wider = allocate(state, BOTH, pod(1))
    assert texts(wider) == [*texts(lease), "fd42:0:0:1::2"]
    _, moved = allocate(state, (PodRange.of("10.42.7.0/24"), BOTH[1]), pod(1))
    assert texts(moved) == ["10.42.7.2", "fd42:0:0:1::2"]


def test_collecting_keeps_the_valid_and_other_networks() -> None:
    state = empty("boot-1")
    for one in (pod(1), pod(2), pod(1, network="other")):
        state, _ = allocate(state, BOTH, one)
    kept = collect(state, "skerry", {pod(2)})
    assert [one.attachment for one in kept.leases] == [pod(1, network="other"), pod(2)]


def test_a_known_lease_is_held_unless_somebody_has_its_address() -> None:
    state, lease = allocate(empty("boot-1"), BOTH, pod(1))
    assert hold(empty("boot-1"), lease).leases == state.leases
    assert hold(state, Lease(pod(2), lease.packed)) is state


def test_small_ipv6_ranges_stay_ipv6() -> None:
    _, lease = allocate(empty("b"), (PodRange.of("::100/120"),), pod(1))
    assert texts(lease) == ["::102"]


@pytest.mark.parametrize(
    "text", ["", "10.42.1.1/24", "10.42.1.0/31", "10.42.1.0/32", "fd42::/127", "ten/8", "10.0.0/8"]
)
def test_no_ranges(text: str) -> None:
    with pytest.raises(IpamError):
        PodRange.of(text)


@pytest.mark.parametrize(
    "state",
    [
        State(2, "b"),
        State(1, "b", (b"abc",)),
        State(1, "b", (b"abcd", b"efgh")),
        State(1, "b", (), (Lease(pod(1), (b"12345",)),)),
        State(1, "b", (), (Lease(pod(1), (b"1234", b"2345")),)),
        State(1, "b", (), (Lease(pod(1), (b"1234",)), Lease(pod(2), (b"1234",)))),
        State(1, "b", (), (Lease(pod(2), (b"1234",)), Lease(pod(1), (b"2345",)))),
        State(1, "b", (), (Lease(pod(1), (b"1234",)), Lease(pod(1), (b"2345",)))),
    ],
)
def test_records_that_cannot_be_true(state: State) -> None:
    with pytest.raises(IpamError):
        load(codec.encode(state))


@given(st.binary(max_size=200))
def test_any_record(data: bytes) -> None:
    try:
        state = load(data)
    except IpamError:
        return
    assert dump(state) == data


def test_a_cut_or_endless_record_is_refused() -> None:
    state, _ = allocate(empty("boot-1"), BOTH, pod(1))
    whole = dump(state)
    for data in [*(whole[:cut] for cut in range(len(whole))), bytes(STATE_MAX + 1)]:
        with pytest.raises(IpamError):
            load(data)


class Machine(RuleBasedStateMachine):
    """Any sequence of ADD, DEL, GC, restarts and reboots, beside a plain model of who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = 0
        self.state = empty("boot-0")
        self.model: dict[Attachment, Lease] = {}

    @rule(number=st.integers(0, 8))
    def add(self, number: int) -> None:
        try:
            self.state, lease = allocate(self.state, SMALL, pod(number))
        except CniError:
            # 10.42.1.2 and .4 to .6.
            assert len(self.model) == 4
            assert pod(number) not in self.model
            return
        assert self.model.get(pod(number), lease) == lease
        self.model[pod(number)] = lease

    @rule(number=st.integers(0, 8))
    def delete(self, number: int) -> None:
        self.state = release(self.state, pod(number))
        self.model.pop(pod(number), None)

    @rule(valid=st.sets(st.integers(0, 8)))
    def gc(self, valid: set[int]) -> None:
        keep = {pod(number) for number in valid}
        self.state = collect(self.state, "skerry", keep)
        self.model = {key: lease for key, lease in self.model.items() if key in keep}

    @rule()
    def restart(self) -> None:
        self.state = at_boot(load(dump(self.state)), f"boot-{self.boot}")

    @rule()
    def reboot(self) -> None:
        self.boot += 1
        self.state = at_boot(load(dump(self.state)), f"boot-{self.boot}")
        self.model = {}

    @invariant()
    def nobody_has_what_another_has(self) -> None:
        assert {one.attachment: one for one in self.state.leases} == self.model
        packed = [one for lease in self.state.leases for one in lease.packed]
        assert len(set(packed)) == len(packed)
        for lease in self.state.leases:
            for address, pods in zip(lease.addresses, SMALL, strict=True):
                assert pods.may_give(address)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=15, stateful_step_count=15)


def test_a_state_cannot_be_changed_in_place() -> None:
    state = empty("b")
    with pytest.raises(AttributeError):
        state.boot_id = "c"  # type: ignore[misc]
    assert msgspec.structs.replace(state, boot_id="c").boot_id == "c"
    assert ipaddress.ip_address("10.42.1.1") == BOTH[0].gateway
