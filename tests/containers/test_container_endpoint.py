"""Local endpoints in containers of the serving image: deployed, tested whole, replaced and taken away by a real engine."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hls_foundry.config import DataConfig
from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.container import LABEL, ContainerSpec, ServerContainer, container_spec
from hls_foundry.endpoints.inference_test import REPLIES, REQUESTS, run_inference_test
from hls_foundry.endpoints.local import Endpoint, LocalEndpoints
from hls_foundry.endpoints.settings import ContainerSettings
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle, pack_bundle
from tests.containers.running import Image
from tests.e2e.machines import SMALL, Machine
from tests.endpoints.caller import Caller
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import scene_tiff

NAME = "burn_scars"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]


@pytest.fixture
def endpoints(tmp_path: Path, image: Image) -> Iterator[LocalEndpoints]:
    """A home whose path is too long for a Unix socket; its endpoint ends with the test."""
    home = LocalEndpoints(tmp_path / ("a-folder-with-a-long-name-" * 4) / "endpoints")
    yield home
    if (home.home / NAME / "endpoint.json").exists():
        home.delete(NAME)
    assert containers(image, home.home) == []


@pytest.fixture
def spec(image: Image, bundle: Path) -> ContainerSpec:
    return container_spec(ContainerSettings(image=image.name, engine=image.engine), bundle)  # type: ignore[arg-type]


def containers(image: Image, home: Path) -> list[str]:
    """Those of the endpoint in `home`."""
    command = [image.engine, "ps", "--all", "--filter", f"label={LABEL}={home / NAME}", "--format", "{{.Names}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def deploy(
    endpoints: LocalEndpoints, bundle: Path, spec: ContainerSpec | None, sha256: str = "", **options: Callable[..., None]
) -> Endpoint:
    digest = sha256 or load_bundle(bundle).sha256
    return endpoints.deploy(NAME, bundle, sha256=digest, model_version="1", environment=ONE_THREAD, container=spec, **options)  # type: ignore[arg-type]


def answer_of(endpoint: Endpoint) -> str:
    """The digest of the model that answers."""
    with EndpointClient(endpoint.url) as client:
        reply = client.invoke(scene_tiff(64))
    assert reply.status == 200
    return reply.headers["x-amzn-sagemaker-custom-attributes"].partition("=")[2]


def chips(root: Path) -> pd.DataFrame:
    for index, size in enumerate((96, 224, 128)):
        (root / f"chip{index}.tif").write_bytes(scene_tiff(size, index))
    return pd.DataFrame([{"chip": f"chip{index}", "image": f"chip{index}.tif", "mask": ""} for index in range(3)])


def test_the_whole_inference_test_passes_without_rights_or_network(
    endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "model.tar.gz"
    sha256 = pack_bundle(bundle, archive)
    archive.chmod(0o600)
    endpoint = deploy(endpoints, archive, replace(spec, cpus=1.5, memory_mb=900), sha256=sha256)
    assert (endpoint.target, endpoint.state) == ("container", "running")
    assert endpoint.container is not None
    assert endpoint.container.image_id.removeprefix("sha256:") == image.tells("{{.Id}}").removeprefix("sha256:")
    with EndpointClient(endpoint.url) as client:
        report = run_inference_test(client, archive, chips(tmp_path), tmp_path, data=DataConfig(source="test"))
    assert report.problems() == []
    assert report.agreement >= 0.9999
    assert {(result.request, result.reply) for result in report.formats if result.requests} == {(a, b) for a in REQUESTS for b in REPLIES}
    assert len(report.bad_requests) > 20
    (name,) = containers(image, endpoints.home)
    told = subprocess.run([image.engine, "container", "inspect", name], capture_output=True, text=True, check=True).stdout
    (container,) = json.loads(told)
    host = container["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Memory"]) == ("none", True, 900 * 2**20)
    assert host["NanoCpus"] == 1_500_000_000
    assert "no-new-privileges" in host["SecurityOpt"]
    status = subprocess.run([image.engine, "exec", name, "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["CapBnd"].strip("0") == fields["CapEff"].strip("0") == ""
    assert fields["Uid"].split()[0] == "10001"
    devices = subprocess.run([image.engine, "exec", name, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:] if "lo:" not in line and "0 " not in line[:40]] == []
    assert "POST /invocations status=200" in endpoints.logs(NAME)


def test_it_takes_a_process_s_place_and_gives_it_back_without_a_lost_request(
    endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path, tmp_path: Path
) -> None:
    other = tiny_bundle(tmp_path / "other", seed=2)
    (other / "model.safetensors").chmod(0o600)  # not for the container's user, who gets a copy
    first = deploy(endpoints, bundle, None)
    with Caller(first.url) as caller:
        second = deploy(endpoints, bundle, spec)
        assert deploy(endpoints, bundle, spec) == second, "the same, healthy: nothing is restarted"
        third = deploy(endpoints, other, spec)
        assert answer_of(third) == load_bundle(other).sha256
        assert len(containers(image, endpoints.home)) == 1
        last = deploy(endpoints, bundle, None)
    assert caller.bad == []
    assert len(caller.digests) == 2
    assert {first.url, second.url, third.url, last.url} == {first.url}
    assert not any(endpoint.running for endpoint in (first, second, third))
    assert (last.target, containers(image, endpoints.home)) == ("local", [])
    assert "stopped" in (Path(third.log)).read_text()
    assert not list((endpoints.home / NAME).glob("*.shared"))


def test_what_cannot_be_served_is_one_line_and_the_one_before_answers(
    endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path, tmp_path: Path
) -> None:
    first = deploy(endpoints, bundle, spec)
    newer, empty = tmp_path / "newer", tmp_path / "empty"
    shutil.copytree(bundle, newer)
    manifest = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    empty.mkdir()
    for folder, less, expected in (
        (newer, spec, "schema version 99"),
        (empty, spec, "holds no model"),
        (bundle, replace(spec, memory_mb=96), "memory_mb is 96"),
        (bundle, replace(spec, image_id=f"sha256:{'0' * 64}"), "cannot start"),
    ):
        with pytest.raises(EndpointError, match="did not start") as refusal:
            deploy(endpoints, folder, less, sha256="0" * 64)
        assert expected in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert len(containers(image, endpoints.home)) == 1
    assert answer_of(first) == first.sha256
    assert endpoints.get(NAME) == first


def test_memory_that_runs_out_in_the_first_test_is_said(endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path) -> None:
    def large(client: EndpointClient) -> None:
        client.invoke(b"II*\0" + bytes(240 * 2**20))  # it waits for its turn in /tmp, which is memory

    with pytest.raises(EndpointError, match=r"ended in its first test: .*memory_mb is 400") as refusal:
        deploy(endpoints, bundle, replace(spec, memory_mb=400), check=large)
    assert "\n" not in str(refusal.value)
    assert containers(image, endpoints.home) == []
    assert endpoints.list() == []


def test_a_container_that_somebody_removed_and_an_engine_that_is_gone(
    endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deploy(endpoints, bundle, spec)
    server = first.process
    assert isinstance(server, ServerContainer)
    with monkeypatch.context() as nowhere:
        nowhere.setenv("PATH", "")
        assert endpoints.get(NAME).state == "running", "it needs no engine to answer"
        assert answer_of(first) == first.sha256
        with pytest.raises(EndpointError, match=f"{image.engine} is not on the PATH"):
            endpoints.delete(NAME)
    assert endpoints.get(NAME) == first
    subprocess.run([image.engine, "kill", server.name], check=True, capture_output=True)
    assert "killed" in endpoints.get(NAME).state
    subprocess.run([image.engine, "rm", "--force", server.name], check=True, capture_output=True)
    assert endpoints.get(NAME).state == "stopped (its container was removed)"
    assert endpoints.logs(NAME) == ""
    again = deploy(endpoints, bundle, spec)
    assert (again.url, answer_of(again)) == (first.url, first.sha256)


def test_an_image_that_is_not_here_or_for_another_processor(image: Image, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EndpointError, match="has no image nobody/made:this: build it"):
        container_spec(ContainerSettings(image="nobody/made:this", engine=image.engine), bundle)  # type: ignore[arg-type]
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(EndpointError, match=r"is for a.*64, this machine is s390x"):
        container_spec(ContainerSettings(image=image.name, engine=image.engine), bundle)  # type: ignore[arg-type]


def test_a_port_that_is_taken(endpoints: LocalEndpoints, image: Image, spec: ContainerSpec, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EndpointError, match="cannot be used") as refusal:
        endpoints.deploy(NAME, bundle, sha256="0" * 64, model_version="1", port=taken.getsockname()[1], container=spec)
    assert "\n" not in str(refusal.value)
    assert containers(image, endpoints.home) == []


def test_run_py_deploys_tests_asks_and_deletes_it(image: Image, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    chosen = {"HLS_LOCAL_TARGET": "container", "HLS_LOCAL_IMAGE": image.name, "OMP_NUM_THREADS": "1"}
    try:
        summary = machine.summary(*SMALL, **chosen)
        assert (summary["endpoint"]["target"], summary["inference_test"]["errors"]) == ("container", 0)
        assert summary["inference_test"]["agreement"] >= 0.9999
        assert "running" in machine.run("endpoints").stdout
        scene = next((tmp_path / "foundry/data").rglob("*_merged.tif"))
        machine.run("predict", str(scene), "--endpoint", NAME, "--out", str(tmp_path / "there.tif"))
    finally:
        machine.run("endpoints", "--delete", NAME)
    assert containers(image, tmp_path / "foundry/endpoints") == []
