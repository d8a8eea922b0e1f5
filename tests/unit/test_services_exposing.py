"""From Kubernetes' annotated Services to the daemon's file, and from there to offers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.exposing import Exposing
from appliance.kubernetes.kubeconfig import Kubeconfig, kubeconfig_text
from appliance.kubernetes.places import Places
from appliance.services import wishes
from appliance.services.daemon import read_kubernetes_file
from appliance.services.wishes import Exposure, Target, Wishes
from tests.fakes.cluster_world import ADMIN

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeKubernetes:
    """Answers paths; ``asked`` says which."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, object] = {}
        self.up = True

    def connect(self, _: Kubeconfig) -> FakeKubernetes:
        return self

    def get(self, path: str) -> bytes:
        self.asked.append(path)
        if not self.up:
            raise KubeApiError("it does not answer")
        found = next((one for start, one in self.answers.items() if path.startswith(start)), {})
        return found if isinstance(found, bytes) else json.dumps(found).encode()

    def close(self) -> None:
        """Nothing is open."""


WEB = {
    "metadata": {"namespace": "shop", "name": "web", "annotations": {"skerry/expose": "web"}},
    "spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
}


def slice_of(service: str, address: str) -> dict[str, object]:
    return {
        "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }


def looking(folder: Path) -> tuple[Exposing, FakeKubernetes, Path]:
    kubernetes = FakeKubernetes()
    kubernetes.answers = {
        "/api/v1/services": {"items": [WEB, "junk"]},
        "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector="
        "kubernetes.io/service-name%3Dweb": {"items": [slice_of("web", "10.244.1.5")]},
        "/apis/": {"items": [slice_of("db", "10.244.1.6")]},
    }
    places = Places(
        run_dir=folder / "run", kubeconfig=folder / "admin", services_dir=folder / "services"
    )
    places.kubeconfig.write_text(kubeconfig_text(ADMIN, "home"))
    return (
        Exposing(places, connect=kubernetes.connect),
        kubernetes,
        places.run_dir / "services.json",
    )


async def test_annotations_and_a_persons_wishes_reach_the_daemon(tmp_path: Path) -> None:
    one, _, path = looking(tmp_path)
    wishes.save(tmp_path / "services", Wishes((Exposure("db", "tcp", 5432, "k8s:shop/db:http"),)))
    await one.work()
    found = read_kubernetes_file(path)
    assert found.exposures == (Exposure("web", "tcp", 80, "k8s:shop/web:http"),)
    assert found.pods == {
        "k8s:shop/web:http": (Target("10.244.1.5", 8080),),
        "k8s:shop/db:http": (Target("10.244.1.6", 8080),),
    }
    assert path.stat().st_mode & 0o777 == 0o644


async def test_where_nothing_is_to_be_exposed_there_is_no_file_and_an_old_one_is_emptied(
    tmp_path: Path,
) -> None:
    one, kubernetes, path = looking(tmp_path)
    services = kubernetes.answers.pop("/api/v1/services")
    await one.work()
    assert not path.exists()
    kubernetes.answers["/api/v1/services"] = services
    await one.work()
    assert read_kubernetes_file(path).exposures
    del kubernetes.answers["/api/v1/services"]
    await one.work()
    assert read_kubernetes_file(path).exposures == ()


async def test_without_an_api_what_was_told_stays(tmp_path: Path) -> None:
    one, kubernetes, path = looking(tmp_path)
    await one.work()
    before = path.read_bytes()
    kubernetes.up = False
    await one.work()
    kubernetes.up, kubernetes.answers = True, {"/": b"no json"}
    await one.work()
    assert path.read_bytes() == before
    (tmp_path / "admin").unlink()
    await one.work()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"exposures": [{"name": "A", "protocol": "tcp", "port": 1}]}',
        '{"pods": {"k8s:a/b": [["127.0.0.1", 1]]}}',
        '{"pods": {"k8s:a/b": [["x; flush ruleset", 1]]}}',
        '{"pods": {"k8s:a/b": [["10.0.0.1", 99999999]]}}',
    ],
)
def test_a_file_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "services.json"
    path.write_text(text)
    assert read_kubernetes_file(path).exposures == ()
    assert read_kubernetes_file(path).pods == {}
    assert read_kubernetes_file(tmp_path / "none").exposures == ()
