"""run.py fetch on a login node, and jobs afterwards that ask nothing of the network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cli.fetch import fetch
from hls_foundry.config import FoundryConfig, load_config
from hls_foundry.errors import FoundryError

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "models" / "golden" / "three_frames_tl.safetensors"
CHIPS = {"training/a_merged.tif": b"a" * 1500, "training/a.mask.tif": b"b" * 500}
WEIGHTS = "hf://owner/name/sub/w.safetensors"
COMMIT = "a" * 40
JOB = """
import sys
from pathlib import Path
from hls_foundry.chips.sources import resolve_source
from hls_foundry.config import load_config
from hls_foundry.home import foundry_home
from hls_foundry.models.prithvi import PrithviEncoder
from hls_foundry.models.weights import load_encoder_weights
task = load_config(Path("configs")).task
for source in sys.argv[2:]:
    print(resolve_source(source, task, foundry_home() / "data"))
encoder = PrithviEncoder(48, 3, 3, image_size=64, num_frames=3, coords_encoding=("time", "location"))
print(load_encoder_weights(encoder, sys.argv[1], cache=foundry_home() / "weights").sha256)
"""


class Hub:
    """What the hub's client asks of the hub: one data set of loose files, one checkpoint. Counts the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        info = {"id": "OWNER/NAME", "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": name} for name in CHIPS]}
        tree = [{"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()} for name, body in CHIPS.items()]
        self.answers = {
            "/api/datasets/OWNER/NAME": json.dumps(info).encode(),
            "/api/datasets/OWNER/NAME/revision/main": json.dumps(info).encode(),
            f"/api/datasets/OWNER/NAME/tree/{COMMIT}": json.dumps(tree).encode(),
            "/owner/name/resolve/main/sub/w.safetensors": CHECKPOINT.read_bytes(),
            **{f"/datasets/OWNER/NAME/resolve/{COMMIT}/{name}": body for name, body in CHIPS.items()},
        }
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def handler(hub) -> type[BaseHTTPRequestHandler]:  # `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                body = hub.answers.get(path)
                self.send_response(404 if body is None else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                return

        return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    hub.thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path / "home"))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    hub.thread.join()


def config(source: str, weights: str = "none", **more: str) -> FoundryConfig:
    overrides = [f"model.weights={weights}", *(f"model.{key}={value}" for key, value in more.items())]
    return load_config(ROOT / "configs", source=source, overrides=tuple(overrides))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "test",
        "DEFAULT_REGION": "eu-west-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="chips", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for name, body in CHIPS.items():
        client.put_object(Bucket="chips", Key=f"v1/{name}", Body=body)
    yield "s3://chips/v1"
    for name in CHIPS:
        client.delete_object(Bucket="chips", Key=f"v1/{name}")
    client.delete_bucket(Bucket="chips")  # moto keeps its state for the life of the process
    server.stop()


def test_what_was_fetched_is_found_by_jobs_that_ask_nothing(
    hub: Hub, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(config("hf://OWNER/NAME", WEIGHTS))
    fetch(config(bucket, WEIGHTS))
    # The hub's client draws bars of its own.
    first, second, third, fourth = (line for line in capsys.readouterr().err.splitlines() if line.startswith(("chips  ", "weights  ")))
    assert first.startswith("chips       fetched 2 files (2 kB) of hf://OWNER/NAME to ")
    assert second.startswith(f"weights     fetched {WEIGHTS} (")
    assert str(tmp_path / "home" / "weights") in second
    assert third.startswith("chips       fetched 2 files (2 kB) of s3://chips/v1 to ")
    assert str(tmp_path / "home" / "data") in third
    assert fourth.startswith(f"weights     nothing to fetch, {WEIGHTS} is in ")

    assert hub.asked, "the stand-in counts"
    hub.asked.clear()
    # As in a job: another cache of the hub's client, and every way out leads to the stand-in, which would be asked.
    job = {"HLS_FOUNDRY_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "other"), "AWS_ENDPOINT_URL": hub.url}
    answer = subprocess.run(
        [sys.executable, "-c", JOB, WEIGHTS, "hf://OWNER/NAME", bucket],
        env={**os.environ, **job}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    *folders, digest = answer.stdout.splitlines()
    for folder in folders:
        assert {name: (Path(folder) / name).read_bytes() for name in CHIPS} == CHIPS
    assert digest == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert hub.asked == []

    (bucket_folder,) = (tmp_path / "home" / "data").glob("s3-*")
    bucket_folder.rename(tmp_path / "moved")
    monkeypatch.setenv("HLS_FOUNDRY_OFFLINE", "1")
    with pytest.raises(FoundryError, match=r"s3://chips/v1 has not been fetched to .*run python run\.py fetch on a login node"):
        fetch(config(bucket))
    assert hub.asked == []


def test_weights_that_were_not_fetched_are_named_in_a_job(hub: Hub, tmp_path: Path) -> None:
    code = f"from pathlib import Path; from hls_foundry.models.weights import fetch_weights; fetch_weights({WEIGHTS!r}, cache=Path('none'))"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert f"{WEIGHTS} has not been fetched and HF_HUB_OFFLINE is set: python run.py fetch" in answer.stderr.splitlines()[-1]
    assert hub.asked == []


def test_nothing_to_fetch_is_said(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(config(str(tmp_path)))
    chips, weights = capsys.readouterr().err.splitlines()
    assert chips == f"chips       nothing to fetch, they lie in {tmp_path}"
    assert weights == "weights     nothing to fetch, the encoder starts from random weights"
    for word in ("fetched 8 files", "nothing to fetch, 8 files"):
        fetch(config("synthetic://?chips=4&size=64&seed=3", str(CHECKPOINT)))
        chips, weights = capsys.readouterr().err.splitlines()
        assert chips.startswith(f"chips       {word}")
        assert weights.startswith(f"weights     nothing to fetch, {CHECKPOINT} is here (")
    fetch(config("hf://OWNER/NAME"))
    fetch(config("hf://OWNER/NAME"))
    assert "nothing to fetch, 2 files (2 kB) of hf://OWNER/NAME" in capsys.readouterr().err
    assert list((tmp_path / "home").rglob("*.partial")) == []


def test_a_checkpoint_of_another_digest_is_refused_before_anything_is_submitted(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FoundryError, match="expected ffff"):
        fetch(config(str(tmp_path), WEIGHTS, weights_sha256="f" * 64))
