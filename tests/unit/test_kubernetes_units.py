"""The units of images with Kubernetes; systemd judges them in tests/contract/test_containerd.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from appliance.cni.service import RUN_DIR
from appliance.container_images.commands import OPERATORS, RECORD, SHIPPED
from appliance.kubernetes.places import AGENT_UNIT, SERVER_UNIT, Places
from appliance.services.offers import SERVICE_RANGE
from image.kubernetes import (
    CNI_DIRECTORY,
    ENGINE_PATH,
    FLANNEL_TOOLS,
    FLANNELD_PATH,
    IMAGES_DIRECTORY,
)

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "rootfs_kubernetes"
UNITS = OVERLAY / "usr/lib/systemd/system"
PLACES = Places()


def settings(unit: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's settings by section and key, each with all its values."""
    sections: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def started_at_boot() -> dict[str, set[str]]:
    links = [path for path in UNITS.glob("*.wants/*") if path.is_symlink()]
    assert all(path.resolve().is_file() for path in links)
    found: dict[str, set[str]] = {}
    for path in links:
        found.setdefault(path.parent.name, set()).add(path.name)
    return found


def test_a_boot_starts_the_cluster_agent_alone_and_only_with_an_identity() -> None:
    assert started_at_boot() == {
        "multi-user.target.wants": {"skerry-cluster.service"},
        "paths.target.wants": {"skerry-cluster.path", "skerry-flannel.path"},
    }
    for unit in UNITS.glob("*.service"):
        # The preset enables skerry*.service: without this section there is nothing to enable.
        assert "Install" not in settings(unit.name), unit.name
    identity = "/data/skerry/identity/identity.bin"
    assert settings("skerry-cluster.service")["Unit"]["ConditionPathExists"] == [identity]
    path = settings("skerry-cluster.path")["Path"]
    assert path == {"PathChanged": [identity], "Unit": ["skerry-cluster.service"]}


@pytest.mark.parametrize(
    ("unit", "role", "other"),
    [(SERVER_UNIT, "server", AGENT_UNIT), (AGENT_UNIT, "agent", SERVER_UNIT)],
)
def test_the_engines_units(unit: str, role: str, other: str) -> None:
    sections = settings(unit)
    service = sections["Service"]
    assert service["ExecStart"] == [f"/{ENGINE_PATH} {role} --config {PLACES.config}"]
    assert service["Type"] == ["notify"]
    # A restart ends no pod.
    assert service["KillMode"] == ["process"]
    assert service["Delegate"] == ["yes"]
    assert service["Restart"] == ["always"]
    assert int(service["OOMScoreAdjust"][0]) < 0
    assert int(service["LimitNOFILE"][0]) >= 1 << 20
    assert service["LimitCORE"] == ["0"]
    head = sections["Unit"]
    assert head["Conflicts"] == [other]
    assert head["StartLimitIntervalSec"] == ["0"]
    assert head["ConditionPathExists"] == [str(PLACES.config)]
    before = {"containerd.service", "skerry-container-images.service"}
    assert before <= set(head["After"][0].split())
    # Wanted, not required: an import that failed, a containerd that comes again stop no engine.
    assert set(head["Wants"][0].split()) == before
    assert "Requires" not in head


def test_one_engine_is_gone_before_the_other_comes() -> None:
    """systemd stops first whatever the order is; it has to be one, and not a circle."""
    after = [settings(unit)["Unit"]["After"][0] for unit in (SERVER_UNIT, AGENT_UNIT)]
    assert [SERVER_UNIT in after[1], AGENT_UNIT in after[0]] == [True, False]


def test_containerds_restart_ends_no_pod() -> None:
    service = settings("containerd.service")["Service"]
    assert (service["KillMode"], service["Delegate"]) == (["process"], ["yes"])
    # Its mounts (pods' namespaces in /run/netns) are to be seen by others.
    private = ("PrivateMounts", "PrivateTmp", "ProtectSystem", "MountFlags", "ReadWritePaths")
    assert not set(private) & service.keys()


def test_the_cluster_agent_may_do_its_work_and_little_else() -> None:
    service = settings("skerry-cluster.service")["Service"]
    assert set(service["CapabilityBoundingSet"][0].split()) == {
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_DAC_OVERRIDE",
    }
    assert service["AmbientCapabilities"] == [""]
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["RestrictNamespaces"] == ["net"]
    assert service["ProtectSystem"] == ["strict"]
    writable = set(" ".join(service["ReadWritePaths"]).split())
    assert {str(PLACES.run_dir), str(RUN_DIR), str(PLACES.data_dir)} <= writable
    assert any(str(PLACES.conflist).startswith(f"{path}/") for path in writable)
    # It writes /proc/sys/net; systemd takes this folder of /run away with the unit.
    assert not {"ProtectKernelTunables", "RuntimeDirectory", "PrivateNetwork"} & service.keys()
    assert service["Type"] == ["notify"]
    assert "WatchdogSec" in service


def test_the_importer_has_no_network_and_few_files() -> None:
    sections = settings("skerry-container-images.service")
    service = sections["Service"]
    assert service["ExecStart"] == ["/usr/bin/skerry container-images import"]
    assert service["PrivateNetwork"] == ["yes"]
    assert service["CapabilityBoundingSet"] == ["CAP_DAC_READ_SEARCH"]
    writable = [Path(one.lstrip("-")) for one in service["ReadWritePaths"]]
    assert any(RECORD.is_relative_to(path) for path in writable)
    assert Path("/") / IMAGES_DIRECTORY == SHIPPED
    assert OPERATORS.is_relative_to(PLACES.data_dir)


def test_containerds_configuration() -> None:
    found = tomllib.loads((OVERLAY / "etc/containerd/config.toml").read_text())
    assert found["version"] == 2
    # On the data partition: /var is its folder.
    assert found["root"].startswith("/var/")
    assert f"unix://{found['grpc']['address']}" == PLACES.containerd
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["cni"]["bin_dir"] == f"/{CNI_DIRECTORY}"
    assert cri["cni"]["conf_dir"] == str(PLACES.conflist.parent)
    assert cri["stream_server_address"] == "127.0.0.1"
    assert cri["containerd"]["snapshotter"] == "overlayfs"
    runc = cri["containerd"]["runtimes"]["runc"]
    assert runc["runtime_type"] == "io.containerd.runc.v2"
    assert runc["options"] == {"SystemdCgroup": True}
    assert "io.containerd.snapshotter.v1.overlayfs" not in found["disabled_plugins"]


def test_folders_are_made_with_their_modes() -> None:
    text = (OVERLAY / "usr/lib/tmpfiles.d/skerry-kubernetes.conf").read_text()
    modes = {
        words[1]: words[2] for line in text.splitlines() if (words := line.split())[:1] == ["d"]
    }
    assert modes[str(RUN_DIR)] == "0700"
    assert modes[str(PLACES.data_dir)] == "0700"
    assert modes[str(PLACES.run_dir)] == "0755"
    assert modes[str(PLACES.conflist.parent)] == "0755"
    assert str(OPERATORS) in modes


def firewall(chain: str) -> list[str]:
    text = (ROOT / "rootfs_overlay/usr/share/skerry/firewall.nft").read_text()
    found = re.search(rf"chain {chain} \{{\n(.*?)\n    \}}", text, re.DOTALL)
    assert found, chain
    return [line.strip() for line in found[1].splitlines()]


def test_pods_reach_the_api_the_kubelet_and_the_resolver_of_their_node() -> None:
    lines = firewall("input")
    jump = lines.index('iifname "skerry-pods" jump from_pods')
    # Before it nothing is open that a pod is not to have.
    assert not any("dport" in line for line in lines[:jump])
    *rules, last = firewall("from_pods")
    resolver = "169.254.20.53"
    *accepted, service = rules
    assert service.startswith("ct status dnat accept ")
    assert len(accepted) == 3
    assert last == "meta l4proto { tcp, udp } drop"
    assert [re.findall(r"dport (\d+)", line)[0] for line in accepted] == ["6443", "10250", "53"]
    assert f"ip daddr {resolver}" in accepted[2]
    listener = (OVERLAY / "usr/lib/systemd/resolved.conf.d/20-skerry-pods.conf").read_text()
    assert f"DNSStubListenerExtra={resolver}\n" in listener
    link = (OVERLAY / "usr/lib/systemd/network/05-loopback.network").read_text()
    assert f"Address={resolver}/32\n" in link
    corefile = (OVERLAY / "usr/share/skerry/manifests/coredns.yaml").read_text()
    assert f"forward . {resolver} {{" in corefile


def test_nobody_on_an_uplink_sends_to_pods_unasked() -> None:
    assert firewall("to_pods") == [
        "ct state established,related accept",
        'iifname { "skerry-pods", "skerry0", "flannel.1" } accept',
        "ct status dnat accept",
        "drop",
    ]
    policy, services, *rules = firewall("forward")
    assert "policy accept" in policy
    assert services.startswith(f"ip daddr {SERVICE_RANGE} reject ")
    assert f'oifname != "lo" ip daddr {SERVICE_RANGE} reject' in firewall("output")
    assert rules == ['oifname "skerry-pods" jump to_pods']


def test_flannel_starts_when_the_cluster_agent_says_so_and_may_only_change_the_network() -> None:
    folder = PLACES.flannel_dir
    assert settings("skerry-flannel.path")["Path"]["PathExists"] == [str(folder / "flannel.env")]
    service = settings("skerry-flannel.service")["Service"]
    assert service["EnvironmentFile"] == [str(folder / "flannel.env")]
    (command,) = service["ExecStart"]
    words = command.split()
    assert words[0] == f"/{FLANNELD_PATH}"
    assert f"--net-config-path={folder / 'net-conf.json'}" in words
    assert f"--kubeconfig-file={PLACES.kubelet_kubeconfig}" in words
    assert {"--ip-masq=false", "--iptables-forward-rules=false"} <= set(words)
    assert service["Environment"][0].startswith(f"PATH=/{FLANNEL_TOOLS}:")
    assert service["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]


def test_each_node_has_a_name_server_which_its_pods_ask() -> None:
    text = (OVERLAY / "usr/share/skerry/manifests/coredns.yaml").read_text()
    documents = {
        match[1]: one
        for one in text.split("\n---\n")
        if (match := re.search(r"^kind: (\w+)$", one, re.MULTILINE))
    }
    selector = "\n    k8s-app: kube-dns\n"
    assert "  selector:\n    matchLabels:\n      k8s-app: kube-dns\n" in documents["DaemonSet"]
    assert f"  selector:{selector}" in documents["Service"]
    assert "\n  trafficDistribution: PreferSameNode\n" in documents["Service"]
    assert "Deployment" not in documents


def test_who_may_make_pods_on_any_node_runs_on_servers_only() -> None:
    """Else the root of an agent's node takes the account's token, and is root on the servers."""
    for path in sorted((OVERLAY / "usr/share/skerry/manifests").glob("*.yaml")):
        documents = path.read_text().split("\n---\n")
        makes_pods = any(
            re.search(r"resources: \[pods\]\n +verbs: .*create", one) for one in documents
        )
        for one in documents:
            if makes_pods and re.search(r"^kind: Deployment$", one, re.MULTILINE):
                selector = one.partition("nodeSelector:\n")[2].partition(" tolerations:")[0]
                assert 'node-role.kubernetes.io/control-plane: "true"\n' in selector
                break
        else:
            assert not makes_pods, path


def test_pods_leave_the_node_itself_room_for_processes() -> None:
    # The kubelet sets no limit; a program that starts itself again and again is in one pod.
    text = (OVERLAY / "usr/lib/systemd/system/kubepods.slice.d/50-skerry.conf").read_text()
    (share,) = re.findall(r"^TasksMax=(\d+)%$", text, re.MULTILINE)
    assert 50 <= int(share) <= 80


def test_the_modules_that_settings_are_for_are_loaded_before() -> None:
    text = (OVERLAY / "usr/lib/modules-load.d/20-skerry-kubernetes.conf").read_text()
    modules = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {"br_netfilter", "nf_conntrack"} <= set(modules)
    settings_text = (OVERLAY / "usr/lib/sysctl.d/60-skerry-kubernetes.conf").read_text()
    assert "net.bridge.bridge-nf-call-iptables = 1\n" in settings_text
    assert "net.netfilter.nf_conntrack_max = " in settings_text
