"""The server as a process: its start, its refusals to start, and its end."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from hls_foundry.models.bundle import load_bundle, pack_bundle
from tests.serving.running import ROOT, RunningServer
from tests.serving.scenes import scene_tiff


def _refuses_to_start(server: RunningServer) -> tuple[int, str]:
    """Exit code and last log line; /ping must never have said 200."""
    while server.process.poll() is None:
        assert not server.client.ping()
        time.sleep(0.02)
    log = server.log.read_text()
    assert "Traceback" not in log
    return server.process.returncode, next(line for line in log.splitlines() if " error " in line)


def test_an_empty_model_folder_is_said_and_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with RunningServer(tmp_path / "log", SM_MODEL_DIR=str(tmp_path / "model")) as server:
        code, line = _refuses_to_start(server)
    assert code != 0
    assert "holds no model" in line


def test_a_bundle_of_a_newer_schema_is_said_and_ends_the_process(tmp_path: Path, bundle: Path) -> None:
    shutil.copytree(bundle, tmp_path / "model")
    manifest = json.loads((tmp_path / "model/model.json").read_text())
    (tmp_path / "model/model.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with RunningServer(tmp_path / "log", SM_MODEL_DIR=str(tmp_path / "model")) as server:
        code, line = _refuses_to_start(server)
    assert code != 0
    assert "schema" in line


def test_a_model_of_another_digest_is_not_served(tmp_path: Path, bundle: Path) -> None:
    with RunningServer(tmp_path / "log", SM_MODEL_DIR=str(bundle), HLS_MODEL_SHA256="0" * 64) as server:
        code, line = _refuses_to_start(server)
    assert code != 0
    assert "digest" in line


def test_a_taken_port_is_said_in_one_line(tmp_path: Path, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with RunningServer(tmp_path / "log", SM_MODEL_DIR=str(bundle), SAGEMAKER_BIND_TO_PORT=str(port)) as server:
            assert server.process.wait(30) == 2
            assert f"port {port}" in server.log.read_text()
            assert "Traceback" not in server.log.read_text()


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "log", HLS_QUEUE="many") as server:
        assert server.process.wait(30) == 2
        assert "HLS_QUEUE" in server.log.read_text()


def test_an_archive_is_served_says_not_yet_before_and_drains_on_sigterm(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "model").mkdir()
    digest = pack_bundle(bundle, tmp_path / "model/model.tar.gz")
    with RunningServer(tmp_path / "log", SM_MODEL_DIR=str(tmp_path / "model"), HLS_MODEL_SHA256=digest) as server:
        seen = set()
        while 200 not in seen:
            assert server.process.poll() is None, server.log.read_text()
            try:
                seen.add(httpx.get(f"{server.url}/ping").status_code)
            except httpx.ConnectError:
                continue
        assert seen == {200, 503}, "the server listens before the model is there"
        replies: list[httpx.Response] = []
        body = scene_tiff(1024)

        def post() -> None:
            replies.append(httpx.post(f"{server.url}/invocations", content=body, headers={"Accept": "image/tiff"}, timeout=60))

        threads = [threading.Thread(target=post) for _ in range(3)]  # one predicts, two wait in the queue
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        assert not replies
        code = server.terminate()
        for thread in threads:
            thread.join()
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert code == 0
    assert not list(Path("/tmp").glob("hls-bundle-*/model.safetensors")), "the unpacked archive is removed"


def test_serving_starts_without_what_it_does_not_serve_with(bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import hls_foundry.serving.server; from hls_foundry.serving import decode, replies;"
        f"from hls_foundry.serving.registry import load_model; load_model('m', Path({str(bundle)!r}));"
        "names = 'pandas scipy geopandas matplotlib zenml accelerate great_expectations torchmetrics httpx sklearn'.split();"
        "names += ['hls_foundry.training', 'hls_foundry.endpoints', 'hls_foundry.validation', 'hls_foundry.evaluation'];"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_digest_of_the_folder_is_accepted_too(bundle: Path, tmp_path: Path) -> None:
    from hls_foundry.serving.registry import load_model

    assert load_model("m", bundle, sha256={load_bundle(bundle).sha256}).name == "m"
    pack_bundle(bundle, tmp_path / "model.tar.gz")
    assert load_model("m", tmp_path, sha256={load_bundle(bundle).sha256}).name == "m"


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_another_command_than_serve_is_refused(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hls_foundry.serving", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "serve" in result.stderr
