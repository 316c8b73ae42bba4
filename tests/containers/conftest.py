"""The serving image, built once for all tests that run it, and a bundle that its user can read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from containers.build import ImageError, Order, build
from hls_foundry.endpoints.engine import find_engine
from hls_foundry.errors import EndpointError
from tests.conftest import missing
from tests.containers.running import Image, readable
from tests.serving.bundles import tiny_bundle


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image of this checkout; HLS_TEST_IMAGE names one that the engine has already."""
    if built := os.environ.get("HLS_TEST_IMAGE"):
        yield Image(find_engine().program, built)
        return
    order = Order("serve", tag=f"hls-foundry-serve:test-{os.getpid()}")
    try:
        engine = find_engine()
        build(engine, order)
    except (EndpointError, ImageError) as error:
        missing(str(error))
    yield Image(engine.program, order.reference)
    subprocess.run([engine.program, "rmi", "--no-prune", order.reference], capture_output=True, check=False)  # the layers stay for the next


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable(tiny_bundle(tmp_path_factory.mktemp("bundle") / "model"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the containers of these tests: threads that wait for each other on busy cores take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
