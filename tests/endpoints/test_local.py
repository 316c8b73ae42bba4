"""Local endpoints: deployed, redeployed without a dropped request, and taken away; real processes on real ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.local import Endpoint, LocalEndpoints
from hls_foundry.endpoints.process import ServerProcess
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle
from tests.endpoints.caller import Caller
from tests.serving.bundles import tiny_bundle
from tests.serving.running import ROOT, free_port
from tests.serving.scenes import scene_tiff

NAME = "burn_scars"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return tiny_bundle(folder / "one", seed=1), tiny_bundle(folder / "two", seed=2)


@pytest.fixture
def endpoints(tmp_path: Path) -> Iterator[LocalEndpoints]:
    """A home whose path is too long for a Unix socket; whatever was started in it ends with the test."""
    home = LocalEndpoints(tmp_path / ("a-folder-with-a-long-name-" * 4) / "endpoints")
    yield home
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "hls_foundry.serving" in (process.info["cmdline"] or []) and str(home.home) in (process.info["cwd"] or ""):
            process.kill()
            process.wait(10)


def deploy(endpoints: LocalEndpoints, bundle: Path, **options: object) -> Endpoint:
    sha256 = load_bundle(bundle).sha256
    return endpoints.deploy(NAME, bundle, sha256=sha256, model_version="1", environment=ONE_THREAD, **options)  # type: ignore[arg-type]


def served_digest(endpoint: Endpoint) -> str:
    with EndpointClient(endpoint.url) as client:
        reply = client.invoke(scene_tiff(64))
    assert reply.status == 200
    return reply.headers["x-amzn-sagemaker-custom-attributes"].partition("=")[2]


def servers(endpoints: LocalEndpoints) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd", "status"])
        if "hls_foundry.serving" in (process.info["cmdline"] or []) and str(endpoints.home) in (process.info["cwd"] or "")
    ]


def test_a_redeployment_keeps_the_address_and_drops_no_request(endpoints: LocalEndpoints, bundles: tuple[Path, Path]) -> None:
    first = deploy(endpoints, bundles[0])
    assert served_digest(first) == first.sha256 == load_bundle(bundles[0]).sha256
    again = deploy(endpoints, bundles[0])
    assert again == first, "the same bundle, healthy: nothing is restarted"
    checked: list[str] = []
    with Caller(first.url) as caller:
        time.sleep(0.3)
        second = deploy(endpoints, bundles[1], check=lambda client: checked.append(client.url))
        time.sleep(0.5)
    assert caller.bad == []
    assert caller.count > 20
    assert len(caller.digests) == 2
    assert second.url == first.url
    assert checked != [second.url], "the check runs before the new server has the endpoint's port"
    assert served_digest(second) == load_bundle(bundles[1]).sha256
    assert not first.running
    assert servers(endpoints) == [second.process.pid]
    assert len(list((endpoints.home / NAME / "models").iterdir())) == 1
    endpoints.delete(NAME)
    assert servers(endpoints) == []
    assert endpoints.list() == []
    with EndpointClient(first.url) as client:
        assert not client.ping()


def test_failed_deployments_leave_the_old_server_answering(endpoints: LocalEndpoints, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    first = deploy(endpoints, bundles[0])

    def fails(_: EndpointClient) -> None:
        raise RuntimeError("a defect in the check")

    empty = tmp_path / "empty"
    empty.mkdir()
    with Caller(first.url) as caller:
        with pytest.raises(RuntimeError, match="a defect in the check"):
            deploy(endpoints, bundles[1], check=fails)
        with pytest.raises(EndpointError, match="did not start") as refusal:
            endpoints.deploy(NAME, empty, sha256="0" * 64, model_version="2")
        with pytest.raises(EndpointError, match="cannot be copied"):
            endpoints.deploy(NAME, tmp_path / "nothing", sha256="0" * 64, model_version="2")
    assert "holds no model" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert caller.bad == []
    assert endpoints.get(NAME) == first
    assert servers(endpoints) == [first.process.pid]


def test_a_first_deployment_that_fails_leaves_nothing(endpoints: LocalEndpoints, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EndpointError, match="holds no model"):
        endpoints.deploy(NAME, tmp_path / "empty", sha256="0" * 64, model_version="1")
    assert servers(endpoints) == []
    assert endpoints.list() == []


def test_a_taken_port_is_an_error_in_one_line(endpoints: LocalEndpoints, bundles: tuple[Path, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=f"port {port} cannot be used") as refusal:
            deploy(endpoints, bundles[0], port=port)
    assert "\n" not in str(refusal.value)
    assert servers(endpoints) == []


def test_an_endpoint_outlives_the_run_that_deployed_it_and_its_ctrl_c(endpoints: LocalEndpoints, bundles: tuple[Path, Path]) -> None:
    port = free_port()
    program = (
        "import time; from pathlib import Path; from hls_foundry.endpoints.local import LocalEndpoints;"
        f"LocalEndpoints(Path({str(endpoints.home)!r})).deploy({NAME!r}, Path({str(bundles[0])!r}), "
        f"sha256={load_bundle(bundles[0]).sha256!r}, model_version='1', port={port}, environment={ONE_THREAD!r});"
        "print('deployed', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert run.stdout is not None
    assert run.stdout.readline() == b"deployed\n"
    os.killpg(run.pid, signal.SIGINT)
    run.wait(10)
    run.stdout.close()
    endpoint = endpoints.get(NAME)
    assert endpoint.port == port
    assert endpoint.running
    assert served_digest(endpoint) == endpoint.sha256
    deadline = time.monotonic() + 10  # a request is logged after its reply has gone out
    while "POST /invocations status=200" not in endpoints.logs(NAME) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "POST /invocations status=200" in endpoints.logs(NAME)
    # Killed from outside: it shows as stopped, and the next deployment brings it back on its port.
    os.kill(endpoint.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while endpoints.get(NAME).running:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert deploy(endpoints, bundles[0]).port == port


def test_what_an_interrupted_deployment_left_is_stopped_by_the_next(endpoints: LocalEndpoints, bundles: tuple[Path, Path]) -> None:
    first = deploy(endpoints, bundles[0])
    program = (
        "import os; from pathlib import Path; from hls_foundry.endpoints.local import LocalEndpoints;"
        f"LocalEndpoints(Path({str(endpoints.home)!r})).deploy({NAME!r}, Path({str(bundles[1])!r}), "
        f"sha256={load_bundle(bundles[1]).sha256!r}, model_version='2', environment={ONE_THREAD!r}, check=lambda client: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 9
    assert len(servers(endpoints)) == 2
    assert served_digest(first) == first.sha256
    assert deploy(endpoints, bundles[0]) == first
    assert servers(endpoints) == [first.process.pid]


def test_two_deployments_of_one_name_wait_for_each_other(endpoints: LocalEndpoints, bundles: tuple[Path, Path]) -> None:
    done: list[Endpoint] = []
    threads = [threading.Thread(target=lambda bundle=bundle: done.append(deploy(endpoints, bundle))) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert done[0].url == done[1].url
    assert servers(endpoints) == [done[1].process.pid]
    assert served_digest(done[1]) == done[1].sha256


def test_a_process_that_only_has_the_pid_is_never_touched() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        impostor = ServerProcess(bystander.pid, "another boot:1", "x.sock")
        assert not impostor.alive()
        impostor.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 64, "-x"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EndpointError, match="name"):
        LocalEndpoints(tmp_path).deploy(name, tmp_path, sha256="", model_version="1")


def test_an_unknown_endpoint_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    for call in (LocalEndpoints(tmp_path).get, LocalEndpoints(tmp_path).delete, LocalEndpoints(tmp_path).logs):
        with pytest.raises(EndpointError, match="no endpoint 'flood'"):
            call("flood")


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "flood").mkdir()
    (tmp_path / "flood/endpoint.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(EndpointError, match="damaged"):
        LocalEndpoints(tmp_path).get("flood")
