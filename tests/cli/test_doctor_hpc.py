"""run.py doctor for a stack on Slurm, against a real cluster: what is right, and each thing that can be wrong, with what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import doctor_hpc, session
from cli.doctor_hpc import check_cluster
from hls_foundry.errors import ConfigError
from stacks.definition import StackDefinition, load_stack
from stacks.slurm.client import Slurm
from stacks.slurm.findings import Finding
from stacks.slurm.probe import Probe
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.transport import LocalTransport
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = [
    "settings", "store", "store locks", "run folder", "commands", "cluster", "limits", "shared folder", "node python", "node store",
    "node locks", "node disk", "node internet",
]  # fmt: skip
Doctor = Callable[..., dict[str, Finding]]


@pytest.fixture
def stack(tmp_path: Path, slurm_cluster: Cluster) -> Callable[..., StackDefinition]:
    """stack(slurm={…}, **configuration): a stack on the rehearsal cluster, its run folders in tmp_path/home/slurm."""

    def write(slurm: dict[str, Any] | None = None, **configuration: Any) -> StackDefinition:
        given = {"folder": str(tmp_path / "home" / "slurm"), "slurm_conf": str(slurm_cluster.slurm_conf), **configuration}
        content = {
            "components": [{"type": "orchestrator", "flavor": "slurm", "configuration": given}],
            "settings": {"resources": {"cpu_count": 1, "memory": "100MB"}, "slurm": slurm or {}},
            "publish": {"folder": "published"},
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        return load_stack("mine", {}, tmp_path)

    return write


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs the checks; ZenML's store is a SQLite file of ours. Afterwards nothing is left in the run folder."""
    store = tmp_path / "zenml.db"
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    monkeypatch.setattr(doctor_hpc, "store_url", lambda: (f"sqlite:///{store}", tmp_path))
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path / "home"))

    def run(definition: StackDefinition, **options: Any) -> dict[str, Finding]:
        found = list(check_cluster(definition, lambda line: None, **options))
        for finding in found:
            assert "\n" not in finding.found + finding.remedy
            assert finding.passed or finding.remedy, f"{finding.name} does not say what to do"
        left = tmp_path / "home" / "slurm"
        assert not left.exists() or list(left.iterdir()) == []
        return {finding.name: finding for finding in found}

    return run


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if not finding.passed]


def test_all_is_well_on_the_rehearsal_cluster(doctor: Doctor, stack: Callable[..., StackDefinition], slurm_cluster: Cluster) -> None:
    found = doctor(stack())
    assert failed(found) == [], found
    assert list(found) == EVERYTHING
    assert sys.executable in found["node python"].found
    queue = subprocess.run(["squeue", "-h", "-n", "hls-doctor"], env={**os.environ, **slurm_cluster.environment}, capture_output=True)
    assert queue.stdout == b""


def test_packages_that_differ_on_the_node_are_named(
    doctor: Doctor, stack: Callable[..., StackDefinition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_hpc, "locked_packages", lambda: {"numpy": "0.1", "not-a-package": "1.0"})
    found = doctor(stack())
    assert failed(found) == ["node python"]
    assert "2 differ from requirements.lock" in found["node python"].found
    assert "not-a-package missing" in found["node python"].found


def test_a_store_that_the_node_does_not_reach_is_named(
    doctor: Doctor, stack: Callable[..., StackDefinition], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_hpc, "store_url", lambda: (f"sqlite:///{tmp_path}/elsewhere.db", tmp_path))
    found = doctor(stack())
    assert failed(found) == ["node store"]
    assert "elsewhere.db is not there" in found["node store"].found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(doctor_hpc, "store_url", lambda: (f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path))
        found = doctor(stack())
    assert failed(found) == ["store", "node store"]
    assert "Connection refused" in found["node store"].found


def test_a_lock_that_the_node_does_not_notice_is_found(
    doctor: Doctor, stack: Callable[..., StackDefinition], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A database that nobody has locked looks to the node as a locked one does on a file system whose locks end at the node."""
    with closing(sqlite3.connect(tmp_path / "free.db")) as connection:
        connection.execute("CREATE TABLE held (one INTEGER)")
    monkeypatch.setattr(Probe, "_held_lock", lambda self: nullcontext(str(tmp_path / "free.db")))
    found = doctor(stack())
    assert failed(found) == ["node locks"]
    assert "do not hold between this machine and the node (granted)" in found["node locks"].found


def test_a_probe_that_cannot_start_python_shows_its_log(doctor: Doctor, stack: Callable[..., StackDefinition]) -> None:
    found = doctor(stack(python="/nowhere/python"))
    assert failed(found) == ["probe job"]
    assert "/nowhere/python" in found["probe job"].found
    found = doctor(stack(slurm={"modules": ["NoSuchModule"]}))
    assert failed(found) == ["probe job"]
    assert "module" in found["probe job"].found


def test_a_probe_that_stays_in_the_queue_is_cancelled_with_slurm_s_reason(
    doctor: Doctor, stack: Callable[..., StackDefinition], slurm_cluster: Cluster, tmp_path: Path
) -> None:
    slurm = Slurm(LocalTransport(slurm_cluster.environment))
    script = tmp_path / "all.sh"
    script.write_text("#!/bin/sh\n#SBATCH --nodes=2 --exclusive --output=/dev/null\nsleep 60\n")
    full = slurm.submit(str(script))
    try:
        found = doctor(stack(), patience_s=2)
    finally:
        slurm.cancel([full])
    assert failed(found) == ["probe job"]
    assert "stayed in the queue for 2 s and was cancelled: " in found["probe job"].found
    assert "(Resources)" in found["probe job"].found or "(Priority)" in found["probe job"].found
    left = subprocess.run(["squeue", "-h", "-n", "hls-doctor"], env={**os.environ, **slurm_cluster.environment}, capture_output=True)
    assert left.stdout == b""


def test_a_folder_that_only_the_login_node_sees_is_found(
    stack: Callable[..., StackDefinition], slurm_cluster: Cluster, tmp_path: Path
) -> None:
    """In a mount namespace of its own the doctor has a file system that the nodes do not see."""
    private = tmp_path / "private"
    private.mkdir()
    code = f"""
from pathlib import Path
from cli import doctor_hpc
from stacks.definition import load_stack
doctor_hpc.store_url = lambda: ("", Path("{tmp_path}"))
for finding in doctor_hpc.check_cluster(load_stack("mine", {{}}, Path("{tmp_path}")), lambda line: None):
    print(finding.name, finding.passed, finding.found, finding.remedy, sep="|")
"""
    stack(folder=str(private / "slurm"))
    mounted = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs private "$1" && exec "$2" -c "$3"']
    environment = {**os.environ, "HLS_FOUNDRY_HOME": str(private), "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [*mounted, "sh", private, sys.executable, code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        missing(f"mount namespaces need root ({answer.stderr.strip()})")
    last = answer.stdout.splitlines()[-1].split("|")
    assert last[:2] == ["shared folder", "False"], answer.stdout + answer.stderr
    assert "left nothing in" in last[2]
    assert "HLS_FOUNDRY_HOME" in last[3]


def test_what_the_cluster_does_not_have_is_found_without_a_probe(doctor: Doctor, stack: Callable[..., StackDefinition]) -> None:
    found = doctor(stack(slurm={"partition": "btach"}))
    assert failed(found) == ["limits"]
    assert "did you mean 'batch'?" in found["limits"].found + found["limits"].remedy
    assert "shared folder" not in found


@pytest.mark.parametrize(
    ("slurm", "configuration", "words"),
    [
        ({"partitoin": "batch"}, {}, ("mine.yaml", "settings.slurm", "partitoin", "'partition'")),
        ({"time": "soon"}, {}, ("mine.yaml", "'time'", "soon")),
        ({}, {"foldr": "x"}, ("mine.yaml", "foldr", "'folder'")),
        ({}, {"poll_s": 0}, ("mine.yaml", "poll_s")),
    ],
)
def test_a_stack_file_with_an_unknown_slurm_key_is_one_line(
    doctor: Doctor, stack: Callable[..., StackDefinition], slurm: dict[str, Any], configuration: dict[str, Any], words: tuple[str, ...]
) -> None:
    found = doctor(stack(slurm, **configuration))
    assert failed(found) == ["settings"]
    for word in words:
        assert word in found["settings"].remedy


def test_without_slurm_s_commands_it_says_where_to_go(
    doctor: Doctor, stack: Callable[..., StackDefinition], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "env", "mktemp", "cat", "mv", "rm", "id"):
        (bare / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(bare))
    found = doctor(stack())
    assert failed(found) == ["commands"]
    assert "no sbatch, squeue" in found["commands"].found
    assert "cluster up" in found["commands"].remedy
    assert list(found)[-1] == "commands"


def test_a_cluster_that_is_down_is_said_after_a_bounded_wait(
    doctor: Doctor, stack: Callable[..., StackDefinition], slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_hpc, "PATIENCE_S", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        lines = slurm_cluster.slurm_conf.read_text().splitlines()
        lines = [f"SlurmctldPort={port}" if line.startswith("SlurmctldPort=") else line for line in lines]
        (tmp_path / "slurm.conf").write_text("\n".join(lines) + "\n")
        found = doctor(stack(slurm_conf=str(tmp_path / "slurm.conf")))
    assert failed(found) == ["cluster"]
    assert "does not answer" in found["cluster"].found
    assert list(found)[-1] == "cluster"


def test_a_folder_that_cannot_be_written_is_said_and_no_probe_is_sent(
    doctor: Doctor, stack: Callable[..., StackDefinition], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    found = doctor(stack(folder=str(tmp_path / "file" / "slurm")))
    assert failed(found) == ["run folder"]
    assert "Not a directory" in found["run folder"].found
    assert "shared folder" not in found


def test_a_wrong_server_stops_every_command_at_once_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ZENML_STORE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("ZENML_STORE_API_KEY", "ZENKEY_secret")
        with pytest.raises(ConfigError, match=r"does not answer \(Connection refused\).*ZENML_STORE_URL") as caught:
            session._check_server()
    assert "ZENKEY" not in str(caught.value)
