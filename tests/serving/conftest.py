"""One bundle, one S3 stand-in and one server for all tests of the serving application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from tests.serving.bundles import tiny_bundle
from tests.serving.running import RunningServer

BUCKET, ABSENT_BUCKET = "scenes", "scenes-that-were-deleted"
MAX_BODY_MB, QUEUE = 16, 8


@dataclass(frozen=True)
class Aws:
    """moto's S3 and what a process needs to reach it."""

    environment: dict[str, str]
    s3: Any


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the servers of these tests: OpenMP threads that wait for each other on busy cores take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with random weights."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture(scope="session")
def moto() -> Iterator[Aws]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    yield Aws(environment, client)
    server.stop()


@pytest.fixture(scope="module")
def aws(moto: Aws) -> Aws:
    """With an empty bucket: moto's state is that of the process, and tests elsewhere reset it."""
    moto.s3.create_bucket(Bucket=BUCKET)
    return moto


@pytest.fixture(scope="session")
def server(bundle: Path, moto: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A healthy single-model server."""
    limits = {
        "HLS_MAX_BODY_MB": str(MAX_BODY_MB),
        "HLS_QUEUE": str(QUEUE),
        "HLS_PENDING_MB": "64",
        "HLS_S3_ALLOW": f"{BUCKET},{ABSENT_BUCKET}",
    }
    log = tmp_path_factory.mktemp("server") / "server.log"
    with RunningServer(log, SM_MODEL_DIR=str(bundle), **limits, **moto.environment) as running:
        yield running.wait_ready()
