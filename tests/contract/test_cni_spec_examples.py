"""The CNI specification's own examples, out of its Go module, through our reader and our answers.

The project publishes no vectors for plugins; what comes nearest are the requests, results and
error codes of SPEC.md, which the pinned and hashed module carries.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.cni.errors import NEWEST, CniError, Code
from appliance.cni.results import read_result, render_error, render_result, render_version
from appliance.cni.spec import Attachment, Command, PortMapping, read_request
from image.golang import go_command

BLOCK = re.compile(r"^(#+ [^\n]+)$|^```jsonc?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESERVED = re.compile(r"^ `(\d+)`\|", re.MULTILINE)
EXAMPLES = {
    "Add example": Command.ADD,
    "Check example": Command.CHECK,
    "Delete example": Command.DEL,
}
NETNS = "/var/run/netns/blue"


@dataclass(frozen=True, slots=True)
class Example:
    """One example, and the heading over it."""

    heading: str
    value: dict[str, Any]


@pytest.fixture(scope="module")
def specification() -> str:
    words = ["mod", "download", "-json", "github.com/containernetworking/cni"]
    done = subprocess.run(go_command(words, folder="cni"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (Path(json.loads(done.stdout)["Dir"]) / "SPEC.md").read_text("utf-8")


@pytest.fixture(scope="module")
def examples(specification: str) -> list[Example]:
    heading, found = "", []
    for match in BLOCK.finditer(specification):
        if match[1]:
            heading = match[1].lstrip("# ")
            continue
        # Comments, and an ellipsis for what is left out, are not JSON.
        text = re.sub(r"//[^\n]*|^ *\.\.\.$", "", match[2], flags=re.MULTILINE)
        found.append(Example(heading, json.loads(text)))
    assert len(found) == 18, "all examples of the specification, no fewer"
    return found


def handed_over(command: Command, config: dict[str, Any]) -> bytes:
    """Return what our shim would send of such a call, with the appendix's parameters."""
    env = {
        "CNI_COMMAND": command.value,
        "CNI_CONTAINERID": "blue",
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "argA=foo",
        "CNI_PATH": "/opt/cni/bin",
    }
    return json.dumps({"env": env, "stdin": json.dumps(config)}).encode()


def requests(examples: list[Example]) -> list[tuple[Command, dict[str, Any]]]:
    return [
        (EXAMPLES[one.heading], one.value)
        for one in examples
        if one.heading in EXAMPLES and "type" in one.value
    ]


def test_every_request_is_read_as_it_is_meant(examples: list[Example]) -> None:
    calls = requests(examples)
    assert (
        sorted(command.value for command, _ in calls) == ["ADD"] * 3 + ["CHECK"] * 3 + ["DEL"] * 3
    )
    for command, config in calls:
        ours = {key: value for key, value in config.items() if key != "ipam"}
        request = read_request(handed_over(command, ours))
        assert (request.command, request.cni_version) == (command, "1.1.0")
        assert request.attachment == Attachment("dbnet", "blue", "eth0")
        assert request.netns == NETNS
        if command is not Command.DEL:
            assert request.args == (("argA", "foo"),)
        mapped = config.get("runtimeConfig", {}).get("portMappings")
        if mapped and command is not Command.DEL:
            assert request.ports == (PortMapping(8080, 80, "tcp"),)
        if "prevResult" in config:
            assert request.previous is not None
            shown = json.loads(render_result(request.previous, "1.1.0"))
            assert shown == config["prevResult"] | {"cniVersion": "1.1.0"}


def test_a_delegated_ipam_is_refused_by_its_key_and_value_but_never_stops_a_del(
    examples: list[Example],
) -> None:
    delegated = [(command, config) for command, config in requests(examples) if "ipam" in config]
    assert {command for command, _ in delegated} == set(EXAMPLES.values())
    for command, config in delegated:
        if command is Command.DEL:
            assert read_request(handed_over(command, config)).command is Command.DEL
            continue
        with pytest.raises(CniError, match=r"ipam is .*host-local.*10\.1\.0\.0/16") as caught:
            read_request(handed_over(command, config))
        assert caught.value.code is Code.UNSUPPORTED_FIELD


def test_every_result_comes_back_as_it_was(examples: list[Example]) -> None:
    results = [one.value for one in examples if "ips" in one.value]
    assert len(results) == 3
    for result in results:
        shown = json.loads(render_result(read_result(json.dumps(result).encode()), NEWEST))
        assert shown == {"interfaces": []} | result | {"cniVersion": NEWEST}


def test_versions_and_errors_have_the_specification_s_form(
    specification: str, examples: list[Example]
) -> None:
    for version in (one.value for one in examples if "supportedVersions" in one.value):
        shown = render_version(version["cniVersion"], tuple(version["supportedVersions"]))
        assert json.loads(shown) == version
    (error,) = (one.value for one in examples if "code" in one.value)
    ours = CniError(Code(error["code"]), error["msg"], hint=error["details"], cni_version=NEWEST)
    assert json.loads(render_error(ours)) == error
    reserved = {int(number) for number in RESERVED.findall(specification)}
    assert reserved == {code.value for code in Code if code.value < 100}
