"""Shared by the tests of endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import httpx
import pytest
import torch

from hls_foundry.endpoints.aws import Aws
from tests.endpoints import amazon


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the servers of these tests: OpenMP threads that wait for each other on busy cores take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """moto for the tests of one module."""
    with amazon.moto_server() as url:
        yield url


@pytest.fixture
def aws_environment(moto_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The environment of a user whose AWS is an empty moto; its URL."""
    httpx.post(f"{moto_url}/moto-api/reset").raise_for_status()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in amazon.environment(moto_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # ~/.aws/sso/cache
    return moto_url


@lru_cache(maxsize=1)
def _aws_of(url: str) -> Aws:
    return Aws()


@pytest.fixture
def aws(aws_environment: str) -> Aws:
    """That user's clients, made once a module: each costs half a second."""
    return _aws_of(aws_environment)
