"""Fixtures of the tests that submit pipelines to a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.slurm.bench import Bench, own_zenml


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, slurm_cluster: Any) -> Iterator[Bench]:
    """A store and a stack of the module's own on the session's cluster, which every test leaves whole."""
    folder = tmp_path_factory.mktemp("bench")
    with own_zenml(folder):
        yield Bench(folder, slurm_cluster)


@pytest.fixture
def full_cluster(bench: Bench) -> Iterator[None]:
    """Jobs submitted meanwhile wait, until `bench.release()`."""
    with bench.full():
        yield
