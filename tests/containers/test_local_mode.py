"""The SageMaker SDK's local mode deploys the serving image on a Docker engine and calls it: nothing of ours in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hls_foundry.config import DataConfig
from hls_foundry.endpoints.client import Reply
from hls_foundry.endpoints.engine import find_engine
from hls_foundry.endpoints.inference_test import REPLIES, REQUESTS, run_inference_test
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle, pack_bundle
from stacks.aws.managed import SDK_CONFIG
from tests.conftest import missing
from tests.containers.running import Image, readable
from tests.serving.running import free_port
from tests.serving.scenes import scene_tiff

ROLE = "arn:aws:iam::123456789012:role/local"
NETWORK = "sagemaker-local"  # the SDK's name for it

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]


@pytest.fixture
def docker_image(image: Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The image in a Docker engine: the one that runs the other tests, or HLS_TEST_DOCKER_HOST, which gets a copy of what podman built."""
    if host := os.environ.get("HLS_TEST_DOCKER_HOST"):
        monkeypatch.setenv("DOCKER_HOST", host)
    try:
        find_engine("docker")
    except EndpointError as error:
        missing(f"local mode needs docker: {error}")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    if not plugin and shutil.which("docker-compose") is None:
        missing("local mode needs docker compose, the plugin or docker-compose (Debian: docker-compose)")
    if image.engine == "docker":
        yield image.name
        return
    with subprocess.Popen([image.engine, "save", "--format", "docker-archive", image.name], stdout=subprocess.PIPE) as saved:
        told = subprocess.run(["docker", "load"], stdin=saved.stdout, capture_output=True, text=True, check=True).stdout
    name = told.strip().rpartition("Loaded image: ")[2]
    yield name
    subprocess.run(["docker", "rmi", "--no-prune", name], capture_output=True, check=False)


@dataclass
class BySdk:
    """An endpoint of local mode as the inference test calls one."""

    client: Any  # LocalSession's for the runtime

    def invoke(self, body: bytes, *, content_type: str, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        started = time.perf_counter()
        options = {"CustomAttributes": attributes} if attributes else {}
        reply = self.client.invoke_endpoint(Body=body, EndpointName="x", ContentType=content_type, Accept=accept, **options)["Body"]
        content = reply.read()
        return Reply(reply.status, {name.lower(): value for name, value in reply.headers.items()}, content, time.perf_counter() - started)


def test_local_mode_deploys_the_image_and_the_inference_test_passes(
    docker_image: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(SDK_CONFIG))  # which reports nothing
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    import boto3
    from sagemaker import Model
    from sagemaker.local import LocalSession

    session = LocalSession(boto3.Session(region_name="eu-central-1", aws_access_key_id="none", aws_secret_access_key="none"))
    session.config = {"local": {"serving_port": free_port(), "container_root": str(tmp_path)}}
    folder, root = tmp_path / "model", tmp_path / "chips"
    for made in (folder, root):
        made.mkdir()
    pack_bundle(bundle, folder / "model.tar.gz")
    readable(folder)
    variables = {"HLS_MODEL_SHA256": load_bundle(bundle).sha256, "OMP_NUM_THREADS": "1"}
    model = Model(docker_image, f"file://{folder}/model.tar.gz", role=ROLE, env=variables, sagemaker_session=session)
    for index, size in enumerate((96, 224, 128)):
        (root / f"{index}.tif").write_bytes(scene_tiff(size, index))
    chips = pd.DataFrame([{"chip": str(index), "image": f"{index}.tif", "mask": ""} for index in range(3)])
    name = f"hls-{uuid.uuid4().hex[:8]}"
    try:
        model.deploy(1, "local", endpoint_name=name)
        report = run_inference_test(BySdk(session.sagemaker_runtime_client), bundle, chips, root, data=DataConfig(source="test"))
    finally:
        session.delete_endpoint(name)
        _remove(docker_image)
    assert report.problems() == []
    assert report.agreement >= 0.9999
    assert {(result.request, result.reply) for result in report.formats if result.requests} == {(a, b) for a in REQUESTS for b in REPLIES}
    assert len(report.bad_requests) > 20


def _remove(image: str) -> None:
    """The SDK ends its docker-compose and leaves the container and the network."""
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"ancestor={image}"], capture_output=True, text=True, check=True
    )
    for container in listed.stdout.split():
        subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True, check=True)
    subprocess.run(["docker", "network", "rm", NETWORK], capture_output=True, check=False)
