"""Revoked nodes' certificates: who is named in the policy, and that it is there before they go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.records import Remove
from appliance.kubernetes.shutting_out import (
    MARK,
    NAMES_MAX,
    ShuttingOut,
    policy_of,
    shut_out,
)
from tests.fakes.cluster_world import IDS, FakeApi, World, founded, member, node_object

pytestmark = pytest.mark.anyio
POLICIES = "validatingadmissionpolicies"
BINDINGS = "validatingadmissionpolicybindings"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def named(api: FakeApi) -> list[str]:
    if POLICIES not in api.policies:
        return []
    return str(api.policies[POLICIES]["metadata"]["annotations"][MARK]).split()


async def with_a_fourth(folder: Path) -> World:
    world = await founded(folder)
    world.api.objects["fourth"] = node_object(3)
    await world.turns(3)
    return world


def test_names_are_kept_until_a_member_has_one() -> None:
    assert shut_out((), {"b", "a"}, {"c"}) == ("a", "b")
    assert shut_out(("x", "a"), {"b", "a"}, {"c"}) == ("x", "a", "b")
    assert shut_out(("x", "a"), (), {"x"}) == ("a",)
    # A Node that says it is of a revoked node, under a member's name, shuts no member out.
    assert shut_out((), {"c"}, {"c"}) == ()
    many = [f"n{number}" for number in range(NAMES_MAX)]
    assert shut_out(many, {"last"}, ()) == (*many[1:], "last")


def test_the_policy_names_users_and_touches_nobody_but_nodes() -> None:
    policy = json.loads(policy_of(("a", "b"), ""))
    spec = policy["spec"]
    assert "resourceVersion" not in policy["metadata"]
    assert spec["matchConditions"][0]["expression"] == (
        'request.userInfo.username.startsWith("system:node:")'
    )
    assert spec["validations"][0]["expression"] == (
        '!(request.userInfo.username in ["system:node:", "system:node:a", "system:node:b"])'
    )
    assert json.loads(policy_of((), "7"))["metadata"]["resourceVersion"] == "7"


def test_what_a_person_wrote_into_the_policy_gets_into_no_expression() -> None:
    api = FakeApi()
    ShuttingOut().work(api, {"a"}, ())
    api.policies[POLICIES]["metadata"]["annotations"][MARK] = 'a "]||true||""in[" b'
    ShuttingOut().work(api, {"c"}, ())
    assert named(api) == ["a", "b", "c"]


async def test_a_revoked_node_is_shut_out_before_its_node_object_goes(tmp_path: Path) -> None:
    world = await with_a_fourth(tmp_path)
    assert world.api.policies == {}
    world.supervisor.revoked.add(IDS[3])
    await world.turns(3)
    assert named(world.api) == ["fourth"]
    assert world.api.policies[BINDINGS]["spec"]["validationActions"] == ["Deny"]
    assert Remove("fourth", "uid-3") in world.api.changes
    # Nothing is asked for nothing.
    calls = world.api.policy_calls
    await world.turns(5)
    assert world.api.policy_calls == calls


async def test_a_new_machine_of_that_name_is_let_in(tmp_path: Path) -> None:
    world = await with_a_fourth(tmp_path)
    world.supervisor.revoked.add(IDS[3])
    await world.turns(3)
    world.supervisor.document["members"].append(member(4, name="fourth"))
    await world.turns(3)
    assert named(world.api) == []
    assert world.api.policies[POLICIES]["spec"]["validations"]


async def test_the_node_stays_until_the_policy_is_there(tmp_path: Path) -> None:
    """Two servers write at once: who loses looks again, with the Node still there."""
    world = await with_a_fourth(tmp_path)
    ShuttingOut().work(world.api, {"other"}, ())
    read = world.api._policy

    def late(method: str, path: str, body: bytes | None) -> bytes:
        said = read(method, path, body)
        if method == "GET" and world.api.policies[POLICIES]["metadata"]["resourceVersion"] == "1":
            world.api.policies[POLICIES]["metadata"]["resourceVersion"] = "2"
        return said

    world.api._policy = late  # type: ignore[method-assign]
    world.supervisor.revoked.add(IDS[3])
    await world.turns(1)
    assert "fourth" in world.api.objects
    await world.turns(2)
    assert named(world.api) == ["other", "fourth"]
    assert "fourth" not in world.api.objects


@pytest.mark.parametrize("answer", [None, b"null", b"{", b'{"metadata": {"annotations": []}}'])
async def test_a_policy_that_cannot_be_kept_is_told_and_keeps_no_node(
    tmp_path: Path, answer: bytes | None
) -> None:
    world = await with_a_fourth(tmp_path)

    answers = world.api._policy

    def refuse(*_: object) -> bytes:
        if answer is None:
            raise KubeApiError("there is no such resource", status=500)
        return answer

    world.api._policy = refuse  # type: ignore[assignment]
    world.supervisor.revoked.add(IDS[3])
    await world.turns(1)
    assert "fourth" not in world.api.objects
    assert [one["code"] for one in world.status["problems"]] in ([], ["kubernetes-refused"])
    await world.turns(1)
    assert [one["code"] for one in world.status["problems"]] == ["kubernetes-refused"]
    # It is not forgotten that this is owed.
    world.api._policy = answers  # type: ignore[method-assign]
    await world.turns(2)
    assert named(world.api) == ["fourth"]
    assert world.status["problems"] == []
