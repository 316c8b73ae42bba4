"""The serving image, built once for all tests that run it, and a bundle that its user can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hls_foundry.endpoints.engine import find_engine
from tests.containers.running import Image, built, readable
from tests.serving.bundles import tiny_bundle


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image of this checkout; HLS_TEST_IMAGE names one that the engine has already."""
    if there := os.environ.get("HLS_TEST_IMAGE"):
        yield Image(find_engine().program, there)
        return
    with built("serve") as (engine, name):
        yield Image(engine.program, name)


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
