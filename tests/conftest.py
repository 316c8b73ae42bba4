"""Fixtures that every room's tests share: the real data next door, and skips that HLS_REQUIRE=all turns into failures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stacks.aws.rehearsal import Rehearsal
from stacks.slurm.rehearsal import PROGRAMS, Cluster
from stacks.slurm.rehearsal_config import default_shape
from stacks.slurm.rehearsal_network import can_name_hosts
from stacks.slurm.rehearsal_processes import missing_programs
from tests.aws.rehearsed import Account, account

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole stacks and clusters first: with a few workers, a long file at the end would leave the others with nothing to do."""
    long = ("e2e", "browser", "containers", "slurm", "training")
    items.sort(key=lambda item: next((n for n, room in enumerate(long) if f"/tests/{room}/" in item.path.as_posix()), len(long)))


def missing(what: str) -> None:
    """Skip the test for want of `what`; with HLS_REQUIRE=all fail it."""
    if os.environ.get("HLS_REQUIRE") == "all":
        pytest.fail(f"HLS_REQUIRE=all, but {what}")
    pytest.skip(what)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the repository."""
    folder = Path(os.environ.get("HLS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"no real imagery at {folder} (../shared/data or HLS_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that runs headless."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    missing("no Chromium on the PATH: make system installs it")
    raise AssertionError  # unreachable: missing() raises


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm cluster of two nodes for all tests that leave it whole; one a pytest-xdist worker."""
    _need_slurm()
    with _running(Cluster(tmp_path_factory.mktemp("slurm"), default_shape(nodes=2, cpus=4))) as cluster:
        yield cluster


@pytest.fixture
def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Start a cluster of its own for a test that breaks it; arguments are those of stacks.slurm.rehearsal_config.Shape, all optional."""
    _need_slurm()
    with ExitStack() as running:

        def make(**shape: Any) -> Cluster:
            if shape.get("network") == "isolated" and (os.geteuid() != 0 or missing_programs(["ip", "nsenter"]) or not can_name_hosts()):
                missing("network namespaces need root, its right to make them, and iproute2")
            cluster = Cluster(tmp_path_factory.mktemp("slurm"), default_shape(**{"nodes": 2, "cpus": 4, **shape}))
            return running.enter_context(_running(cluster))

        yield make


# Waits for the end of its standard input, which comes with that of the tests, however they end.
TAKE_DOWN = """
import sys; sys.path.insert(0, sys.argv[1]); sys.stdin.read()
from pathlib import Path
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape
Cluster(Path(sys.argv[2]), default_shape()).down()
"""


@contextmanager
def _running(cluster: Cluster) -> Iterator[Cluster]:
    """Up for as long as the body runs; taken down as well where pytest is killed."""
    command = [sys.executable, "-c", TAKE_DOWN, str(ROOT), str(cluster.home.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # its end waits for that of the process
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


def _need_slurm() -> None:
    if what := missing_programs(PROGRAMS):
        missing(what)


# As TAKE_DOWN.
END_REHEARSAL = """
import sys; sys.path.insert(0, sys.argv[1]); sys.stdin.read()
from pathlib import Path
from stacks.aws.rehearsal import Rehearsal
Rehearsal(Path(sys.argv[2])).down()
"""


@contextmanager
def rehearsal_up(home: Path) -> Iterator[Rehearsal]:
    """A rehearsal of AWS in `home` for as long as the body runs; taken down as well where pytest is killed."""
    rehearsal = Rehearsal(home, threads=1)
    command = [sys.executable, "-c", END_REHEARSAL, str(ROOT), str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # its end waits for that of the process
        try:
            rehearsal.up()
            yield rehearsal
        finally:
            rehearsal.down()


@pytest.fixture(scope="session")
def aws_rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """S3, SageMaker and what they need, for all tests that leave them whole; its `environment` is what a client needs."""
    with rehearsal_up(tmp_path_factory.mktemp("aws")) as rehearsal:
        yield rehearsal


@pytest.fixture
def aws_account(aws_rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The rehearsal's account for one test: its environment in os.environ, a prefix for names, and nothing left of SageMaker afterwards."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_rehearsal.environment.items():
        monkeypatch.setenv(name, value)
    prefix = f"t{uuid.uuid4().hex[:8]}"
    with account(aws_rehearsal, prefix) as made:
        yield made
