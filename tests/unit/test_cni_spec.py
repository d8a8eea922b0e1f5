"""Requests of the shim, and the forms of results and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cni.errors import CniError, Code
from appliance.cni.results import (
    Address,
    Dns,
    Interface,
    Result,
    Route,
    read_result,
    render_error,
    render_result,
    render_version,
)
from appliance.cni.spec import (
    BODY_MAX,
    SUPPORTED,
    Attachment,
    Command,
    Request,
    check_container_id,
    check_ifname,
    check_netns,
    read_request,
)

ID = "3f" * 32
ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": ID,
    "CNI_NETNS": "/var/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web-0;EMPTY=",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "skerry", "type": "skerry-cni"}
RESULT = Result(
    (
        Interface("skbr0", "02:00:00:00:00:01", 1380),
        Interface("skpabc", "02:00:00:00:00:02", 1380),
        Interface("eth0", "02:00:00:00:00:03", 1380, "/var/run/netns/cni-1"),
    ),
    (Address("10.42.1.2/24", "10.42.1.1", 2), Address("fd42::2/64", "fd42::1", 2)),
    (Route("0.0.0.0/0", "10.42.1.1"), Route("10.9.0.0/16", "10.42.1.1", 1380, 5, 7)),
    Dns(("10.43.0.10",), "cluster.local"),
)


def body(env: dict[str, str] | None = None, **config: object) -> bytes:
    stdin = json.dumps(CONFIG | config)
    return json.dumps({"env": ENV | (env or {}), "stdin": stdin}).encode()


def call(command: str, **config: object) -> Request:
    return read_request(body({"CNI_COMMAND": command}, **config))


def refused(data: bytes) -> CniError:
    with pytest.raises(CniError) as caught:
        read_request(data)
    return caught.value


def test_an_add_is_read_whole() -> None:
    request = call(
        "ADD",
        ipMasq=False,
        capabilities={"portMappings": True},
        someChainedPlugins={"own": ["field"]},
        args={"cni": {"ips": ["10.0.0.1"]}},
        runtimeConfig={
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "127.0.0.1"},
                {"hostPort": 0, "containerPort": 9000, "protocol": "udp"},
            ],
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
            "mac": "02:00:00:00:00:09",
        },
    )
    assert request.command is Command.ADD
    assert request.attachment == Attachment("skerry", ID, "eth0")
    assert request.netns == "/var/run/netns/cni-1"
    assert request.args == (("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web-0"), ("EMPTY", ""))
    assert [(one.host_port, one.container_port) for one in request.ports] == [(8080, 80)]
    assert request.ports[0].host_ip == "127.0.0.1"
    assert request.bandwidth is not None
    assert request.bandwidth.ingress_burst == 2000
    assert call("ADD", ipam={}, dns=None, prevResult=None).previous is None


def test_a_del_without_a_namespace_and_with_a_spoilt_result() -> None:
    request = read_request(
        body({"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, prevResult={"ips": [{"address": 7}]})
    )
    assert (request.netns, request.previous) == ("", None)
    assert request.attachment == Attachment("skerry", ID, "eth0")
    whole = call("DEL", prevResult=json.loads(render_result(RESULT, "1.1.0")))
    assert whole.previous == RESULT


def test_a_del_comes_through_with_what_made_the_add_fail() -> None:
    spoilt: dict[str, Any] = {"ipam": {"type": "dhcp"}, "runtimeConfig": {"bandwidth": 7}}
    assert refused(body(**spoilt)).code is Code.UNSUPPORTED_FIELD
    assert refused(body(runtimeConfig={"bandwidth": 7})).code is Code.CONFIG
    assert call("DEL", **spoilt).attachment == Attachment("skerry", ID, "eth0")
    garbled = body({"CNI_COMMAND": "DEL", "CNI_ARGS": "no pair"})
    assert read_request(garbled).args == ()


def test_a_check_has_something_to_compare_with() -> None:
    error = refused(body({"CNI_COMMAND": "CHECK"}))
    assert error.code is Code.CONFIG
    spoilt = body({"CNI_COMMAND": "CHECK"}, prevResult={"ips": [{"address": "10.1.1.1.1"}]})
    assert refused(spoilt).code is Code.CONFIG
    assert call("CHECK", prevResult={"interfaces": []}).previous == Result()


def test_a_gc_names_what_stays_in_its_network_and_no_list_is_not_an_empty_one() -> None:
    listed = {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}
    assert call("GC", **listed).valid == frozenset({Attachment("skerry", "a", "eth0")})
    assert call("GC", **{"cni.dev/valid-attachments": []}).valid == frozenset()
    assert call("GC").valid is None
    early = {"cni.dev/attachments": [{"containerID": "b", "ifname": "eth0"}]}
    assert call("GC", **early).valid == frozenset({Attachment("skerry", "b", "eth0")})
    assert call("GC", **early, **listed).valid == frozenset({Attachment("skerry", "a", "eth0")})


def test_status_and_version_need_no_container() -> None:
    env = {"CNI_COMMAND": "STATUS"}
    data = json.dumps({"env": env, "stdin": json.dumps(CONFIG)}).encode()
    assert read_request(data).command is Command.STATUS
    for stdin, version in (
        ('{"cniVersion": "0.4.0"}', "0.4.0"),
        ("", "1.1.0"),
        ("[" * 100_000, "1.1.0"),
        ('{"cniVersion": "<script>"}', "1.1.0"),
    ):
        handed = json.dumps({"env": {"CNI_COMMAND": "VERSION"}, "stdin": stdin}).encode()
        assert read_request(handed).cni_version == version
    shown = json.loads(render_version("0.4.0", SUPPORTED))
    assert shown == {"cniVersion": "0.4.0", "supportedVersions": list(SUPPORTED)}


@pytest.mark.parametrize(
    ("command", "version", "fits"),
    [
        ("ADD", "0.3.1", True),
        ("DEL", "0.3.1", True),
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("GC", "1.0.0", False),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
        ("ADD", "0.2.0", False),
        ("ADD", "1.2.0", False),
        ("ADD", "", False),
    ],
)
def test_commands_came_with_versions(command: str, version: str, fits: bool) -> None:
    data = body({"CNI_COMMAND": command}, cniVersion=version, prevResult={})
    if fits:
        assert read_request(data).cni_version == version
    else:
        error = refused(data)
        assert error.code is Code.VERSION
        assert json.loads(render_error(error))["cniVersion"] in SUPPORTED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", Code.DECODE),
        (b"\xff{}", Code.DECODE),
        (b"[" * 100_000, Code.DECODE),
        (b"{}", Code.DECODE),
        (b'{"env": {"CNI_COMMAND": 1}, "stdin": ""}', Code.DECODE),
        (b'{"env": {"CNI_COMMAND": "\\ud800"}, "stdin": "{}"}', Code.DECODE),
        (b'{"env": {"CNI_COMMAND": "ADD"}, "stdin": "\\ud800"}', Code.DECODE),
        (
            json.dumps({"env": ENV, "stdin": '{"prevResult": ' + "[" * 9999}).encode(),
            Code.DECODE,
        ),
        (b" " * (BODY_MAX + 1), Code.IO),
        (body({"CNI_COMMAND": "add"}), Code.ENVIRONMENT),
        (json.dumps({"env": ENV, "stdin": "{"}).encode(), Code.DECODE),
        (json.dumps({"env": ENV, "stdin": "[]"}).encode(), Code.CONFIG),
        (body(name=""), Code.CONFIG),
        (body(name="a/b"), Code.CONFIG),
        (body(ipam={"type": "dhcp"}), Code.UNSUPPORTED_FIELD),
        (body({"CNI_CONTAINERID": ""}), Code.ENVIRONMENT),
        (body({"CNI_NETNS": ""}), Code.ENVIRONMENT),
        (body({"CNI_ARGS": "no pair"}), Code.ENVIRONMENT),
        (body(prevResult=[]), Code.CONFIG),
        (body(prevResult={"ips": [{"address": "10.0.0.1/8", "interface": 0}]}), Code.CONFIG),
        (
            body(runtimeConfig={"portMappings": [{"hostPort": 70000, "containerPort": 1}]}),
            Code.CONFIG,
        ),
        (
            body(
                runtimeConfig={
                    "portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]
                }
            ),
            Code.CONFIG,
        ),
        (body(runtimeConfig={"bandwidth": {"ingressRate": 5}}), Code.CONFIG),
        (
            body(runtimeConfig={"bandwidth": {"egressRate": -5, "egressBurst": 5}}),
            Code.CONFIG,
        ),
    ],
)
def test_refusals_have_the_code_of_the_specification(data: bytes, code: Code) -> None:
    assert refused(data).code is code


def test_a_refusal_answers_in_the_version_that_was_asked_for() -> None:
    error = refused(body({"CNI_IFNAME": "a/b"}, cniVersion="0.4.0"))
    shown = json.loads(render_error(error))
    assert (shown["cniVersion"], shown["code"]) == ("0.4.0", 4)
    assert "CNI_IFNAME" in shown["msg"]
    assert "15" in shown["details"]
    unsupported = refused(body(ipam={"type": "dhcp"}))
    assert "ipam" in str(unsupported)
    assert "dhcp" in str(unsupported)


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "net.1", "-", "ü" * 7])
def test_names_of_interfaces(name: str) -> None:
    assert check_ifname(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a" * 16, "a/b", "a:b", "a b", "a\n", "a\u00a0", "x\0", "ü" * 8, "d%d"]
)
def test_no_names_of_interfaces(name: str) -> None:
    with pytest.raises(CniError):
        check_ifname(name)


@pytest.mark.parametrize("text", ["", "-a", ".a", "_a", "a/b", "a\n", "a b", "ä", "a" * 254])
def test_no_container_ids(text: str) -> None:
    with pytest.raises(CniError):
        check_container_id(text)


@pytest.mark.parametrize(
    "path", ["netns/x", "/run/../etc/x", "/run/netns/", "/", "/a\0b", "/a\nb", "/" + "x" * 4095]
)
def test_no_paths_of_namespaces(path: str) -> None:
    with pytest.raises(CniError):
        check_netns(path)


def test_a_path_of_a_process_is_one() -> None:
    assert check_netns("/proc/4711/ns/net") == "/proc/4711/ns/net"


def test_results_in_each_version() -> None:
    newest = json.loads(render_result(RESULT, "1.1.0"))
    assert newest["interfaces"][2] == {
        "name": "eth0",
        "mac": "02:00:00:00:00:03",
        "mtu": 1380,
        "sandbox": "/var/run/netns/cni-1",
    }
    assert newest["ips"][0] == {
        "address": "10.42.1.2/24",
        "gateway": "10.42.1.1",
        "interface": 2,
    }
    assert newest["routes"][1]["table"] == 7
    older = json.loads(render_result(RESULT, "1.0.0"))
    assert "mtu" not in older["interfaces"][2]
    assert older["routes"][1] == {"dst": "10.9.0.0/16", "gw": "10.42.1.1"}
    assert "version" not in older["ips"][0]
    for version in ("0.4.0", "0.3.1"):
        old = json.loads(render_result(RESULT, version))
        assert old["cniVersion"] == version
        assert [one["version"] for one in old["ips"]] == ["4", "6"]
    assert "sandbox" not in newest["interfaces"][0]


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_result_comes_back_as_it_was_told(version: str) -> None:
    back = read_result(render_result(RESULT, version))
    assert back.ips == RESULT.ips
    assert [one.name for one in back.interfaces] == ["skbr0", "skpabc", "eth0"]
    assert render_result(back, version) == render_result(RESULT, version)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["cniVersion", "name", "ipMasq", "ipam", "runtimeConfig", "prevResult", "args", "dns"]
)


def answered(data: bytes) -> None:
    """Either a request whose parts are sound, or an error that can be told."""
    try:
        request = read_request(data)
    except CniError as error:
        shown = json.loads(render_error(error))
        if shown["code"] == error.code and shown["msg"] and shown["cniVersion"] in SUPPORTED:
            return
        raise
    if request.attachment is not None:
        check_container_id(request.attachment.container)
        check_ifname(request.attachment.ifname)
    assert request.command is Command.VERSION or request.cni_version in SUPPORTED


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    answered(data)


@given(
    st.sampled_from([one.value for one in Command]),
    st.dictionaries(st.sampled_from(sorted(ENV)), st.text(max_size=20), max_size=3),
    st.dictionaries(FIELDS, JSON, max_size=4),
    JSON,
)
@settings(max_examples=10)
def test_any_environment_and_configuration(
    command: str, env: dict[str, str], config: dict[str, object], valid: object
) -> None:
    config["cni.dev/valid-attachments"] = valid
    answered(body({"CNI_COMMAND": command} | env, **config))


@given(
    st.dictionaries(
        st.sampled_from(["interfaces", "ips", "routes", "dns"]),
        JSON
        | st.lists(
            st.dictionaries(st.sampled_from(["address", "gateway", "dst"]), JSON, max_size=2),
            max_size=2,
        ),
    )
)
@settings(max_examples=10)
def test_any_previous_result(previous: dict[str, object]) -> None:
    answered(body({"CNI_COMMAND": "CHECK"}, prevResult=previous))
    assert call("DEL", prevResult=previous).command is Command.DEL
