"""The image and the DaemonSet for clusters that do not run our image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.cni.service import RUN_DIR
from appliance.kubernetes import service_account
from appliance.kubernetes.places import Places
from image import foreign
from image.board import Architecture
from image.errors import BuildError
from image.oci import Directory, File, Link
from skerry.__main__ import build_parser


def test_the_manifest_names_the_image_everywhere() -> None:
    text = foreign.manifest("registry.example/skerry:1.0")
    assert text.count('image: "registry.example/skerry:1.0"') == 4
    assert not re.search(r"@[A-Z]+@", text)


def test_what_the_manifest_calls_are_our_commands() -> None:
    text = foreign.MANIFEST.read_text()
    (supervisor,) = re.findall(r"args:\n((?: +- \S+\n)+)", text)
    words = re.findall(r"- (\S+)", supervisor)
    found = build_parser().parse_args(words)
    assert str(found.token_file) == "/etc/skerry/token.txt"
    assert str(found.wireguard_go) == f"/usr/lib/skerry/bin/{foreign.WIREGUARD.name}"
    assert f"command: [{found.wireguard_go}, run, skerry0]" in text
    (agent,) = re.findall(r"args: \[(.*)\]", text)
    assert build_parser().parse_args(agent.split(", ")).pods_only


def test_the_pods_part_has_all_folders_of_the_agent() -> None:
    _, _, pods = foreign.MANIFEST.read_text().partition("- name: pods\n")
    mounts = set(re.findall(r"mountPath: (\S+)", pods))
    places = Places()
    assert {
        *(str(places.run_dir), str(places.data_dir), str(places.conflist.parent)),
        *(str(RUN_DIR), str(places.socket.parent), "/run/netns"),
        str(service_account.FOLDER),
    } <= mounts
    # A container's own /proc/sys is read-only, and nothing can be mounted below /proc.
    assert not {one for one in mounts if one.startswith("/proc")}
    (settings,) = re.findall(r"name: SKERRY_PROC_SYS_NET\n +value: (\S+)", pods)
    assert settings in mounts
    # Namespaces that the runtime makes later have to be seen as well.
    assert re.search(r"mountPath: /run/netns\n +mountPropagation: HostToContainer", pods)


def test_nothing_in_it_is_privileged() -> None:
    text = foreign.MANIFEST.read_text()
    assert "privileged: true" not in text
    containers = text.count("image: ")
    assert text.count("allowPrivilegeEscalation: false") == containers
    assert text.count("drop: [ALL]") == containers
    assert text.count("readOnlyRootFilesystem: true") == containers


def test_one_container_asks_kubernetes_and_for_one_thing() -> None:
    text = foreign.MANIFEST.read_text()
    assert text.count("automountServiceAccountToken: false") == 2
    assert text.count("name: account") == 2  # the volume, and who mounts it
    assert re.findall(r"resources: \[(.*)\]\n +verbs: \[(.*)\]", text) == [("nodes", "get, patch")]


@pytest.mark.parametrize("name", ["skerry", "skerry:", "skerry/x", "a b/c:1", "Upper/x:1", "/x:1"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="no whole name"):
        foreign.make(Architecture.AMD64, name, tmp_path)


def test_a_tree_becomes_entries(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o700)
    (tmp_path / "bin/tool").write_text("x")
    (tmp_path / "bin/tool").chmod(0o700)
    (tmp_path / "bin/link").symlink_to("tool")
    (tmp_path / "text").write_text("y")
    (tmp_path / "text").chmod(0o600)
    assert foreign.entries(tmp_path) == {
        "/bin": Directory(0o755),
        "/bin/link": Link("tool"),
        "/bin/tool": File(tmp_path / "bin/tool", 0o755),
        "/text": File(tmp_path / "text", 0o644),
    }


def test_plugins_are_put_beside_others(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    for name in ("skerry-cni", "portmap", "loopback"):
        (ours / name).write_text(f"our {name}")
    (theirs / "portmap").write_text("their portmap")
    (theirs / "skerry-cni").write_text("old")
    script = foreign.INSTALLER.read_text().replace("/usr/lib/cni", str(ours))
    subprocess.run(["sh", "-c", script, "install-cni", str(theirs)], check=True)
    found = {path.name: path.read_text() for path in theirs.iterdir()}
    assert found == {
        "portmap": "their portmap",
        "skerry-cni": "our skerry-cni",
        "loopback": "our loopback",
    }
    assert (theirs / "loopback").stat().st_mode & 0o777 == 0o755


def test_userspace_wireguard_runs_when_it_is_called_for(tmp_path: Path) -> None:
    """Beside who calls for it; and anew, in spite of the socket that the first one left."""
    places, program = tmp_path / "run", tmp_path / "wireguard-go"
    places.mkdir()
    listen = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{listen}" {places}/$2.sock\n')
    program.chmod(0o755)
    text = foreign.WIREGUARD.read_text().replace("/run/wireguard", str(places))
    script = text.replace("/usr/lib/skerry/bin/wireguard-go", str(program))
    words = ["sh", "-c", script, "userspace-wireguard"]
    for _ in range(2):
        with subprocess.Popen([*words, "run", "sk0"]) as beside:
            subprocess.run([*words, "sk0"], check=True, timeout=20)
            assert beside.wait(20) == 0
        assert (places / "sk0.sock").is_socket()


def test_userspace_wireguard_that_waits_ends_when_it_is_told(tmp_path: Path) -> None:
    script = foreign.WIREGUARD.read_text().replace("/run/wireguard", str(tmp_path))
    # Its first process, as in a container: such a one heeds only what it asks for.
    ready = f"{script.replace('wait $!', 'echo ready; wait $!')}"
    words = ["sh", "-c", ready, "userspace-wireguard", "run", "sk0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"ready\n"
        waiting.terminate()
        assert waiting.wait(20) == 0
    # In a container its reader ends with it; here it may have been too young to be told.
    with suppress(OSError):
        os.close(os.open(tmp_path / "sk0.wanted", os.O_WRONLY | os.O_NONBLOCK))
