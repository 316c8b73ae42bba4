"""Shared by the tests of the rehearsal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hls_foundry.models.bundle import pack_bundle
from tests.serving.bundles import tiny_bundle


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the servers of these tests: OpenMP threads that wait for each other on busy cores take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models' model.tar.gz."""
    folder = tmp_path_factory.mktemp("archives")
    made = folder / "1.tar.gz", folder / "2.tar.gz"
    for seed, archive in enumerate(made):
        pack_bundle(tiny_bundle(folder / f"bundle{seed}", seed=seed), archive)
    return made
