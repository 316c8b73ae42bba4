"""The client's side of a submission, on a real cluster: what it freezes, what its death leaves, over ssh, and what nobody may see."""

from __future__ import annotations

import os
import re
import secrets
import stat
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller, open_run
from stacks.slurm.freeze import freeze
from stacks.slurm.transport import SSHTransport
from tests.conftest import ROOT
from tests.slurm.bench import Bench
from tests.slurm.sshd import running_sshd

TOKEN = f"zenml-token-{secrets.token_hex(16)}"
"""Not a constant: this file is among the frozen code."""


def drive(bench: Bench, tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submit from another process, with `tree` as its working tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "SLURM_CONF": str(bench.cluster.slurm_conf)}
    command = [sys.executable, "-m", "tests.slurm.driver", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the working tree that a test may edit."""
    folder = tmp_path / "tree"
    with tarfile.open(fileobj=BytesIO(freeze(ROOT).archive)) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def test_a_job_runs_the_code_as_it_was_submitted(bench: Bench, full_cluster: None, tree: Path) -> None:
    done = drive(bench, tree, "says_its_version", "edited-while-pending")
    assert done.returncode == 0, done.stderr
    edited = tree / "tests" / "slurm" / "edited.py"
    text = edited.read_text()
    edited.write_text(text.replace("as submitted", "as edited"))
    assert text != edited.read_text()
    (tree / "tests" / "slurm" / "pipelines.py").unlink()
    bench.release()
    run = bench.wait("edited-while-pending")
    assert run.status.value == "completed"
    assert run.steps["version_of_code"].output.load() == "as submitted"


def test_a_client_that_dies_between_two_jobs_leaves_a_run_that_failed_and_an_empty_queue(bench: Bench) -> None:
    done = drive(bench, ROOT, "diamond", "interrupted", "3")
    assert done.returncode == -9, done.stderr
    run = bench.run("interrupted")
    assert (run.status.value, run.run_metadata.get("slurm_jobs")) == ("initializing", None)
    died = time.monotonic()
    run = bench.wait("interrupted", lambda run: run.status.is_finished)
    assert time.monotonic() - died < 60
    assert (run.status.value, bench.statuses(run)) == ("failed", {})
    assert "the submission was interrupted" in run.get_body().status_reason
    transport = bench.orchestrator.transport()
    deadline = time.monotonic() + 20
    while queued := transport.run(["squeue", "--noheader", "--format=%j %T %r"]).stdout:
        assert time.monotonic() < deadline, queued
        time.sleep(0.5)


def test_a_pipeline_submitted_over_ssh_completes_with_one_login(bench: Bench, tmp_path: Path) -> None:
    from tests.slurm.pipelines import waiting

    remote = tmp_path / "remote"
    with running_sshd(tmp_path) as server:
        slurm_conf = str(bench.cluster.slurm_conf)
        bench.use("ssh", login=server.login, ssh_options=server.options(), python=sys.executable, folder=str(remote))
        try:
            run = bench.run(bench.submit(waiting, 1))
            assert server.connections() == 1
            with SSHTransport(server.login, options=server.options(), environment={"SLURM_CONF": slurm_conf}) as transport:
                opened = open_run(transport, str(bench.folder_of(run)))
                follower = Follower(Slurm(transport), transport, *opened, Poller(least_s=0.5))
                while not follower.finished:
                    follower.rows()
                    time.sleep(0.5)
                log = transport.read(follower.log_files()["wait"])
            assert server.connections() == 2
            assert b"waiting 1.0 s" in log
            run = bench.wait(str(run.id))
            assert (run.status.value, set(bench.statuses(run).values())) == ("completed", {"completed"})
            assert [path.name for path in remote.iterdir()] == [str(run.id)]
        finally:
            bench.use("test")


def test_the_token_is_in_private_environment_files_only(bench: Bench, full_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from zenml.orchestrators.utils import get_config_environment_vars

    from tests.slurm.pipelines import grows_and_waits

    def with_token(**options: Any) -> tuple[dict[str, str], dict[str, str]]:
        """As ZenML hands it over where the store is a server."""
        variables, private = get_config_environment_vars(**options)
        return variables, {**private, "ZENML_STORE_API_TOKEN": TOKEN}

    monkeypatch.setattr("zenml.orchestrators.base_orchestrator.get_config_environment_vars", with_token)
    run_id = bench.submit(grows_and_waits, 5)
    queue = bench.orchestrator.transport().run(["scontrol", "show", "job", "--details"]).stdout
    assert run_id in queue
    assert TOKEN not in queue
    bench.release()
    seen = set()
    while not bench.run(run_id).status.is_finished:
        seen |= command_lines()
        time.sleep(0.5)
    run = bench.wait(run_id)
    assert run.status.value == "completed"
    assert any("stacks.slurm.supervisor" in line for line in seen)
    assert not [line for line in seen if TOKEN in line]
    assert TOKEN not in str(run.run_metadata) + str(run.config)
    folder = bench.folder_of(run)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    holding = [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert {path.name for path in holding} == {"environment"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}


def command_lines() -> set[str]:
    """Of every process on this machine: the nodes are all on it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return found


def test_forty_steps_in_one_pipeline_complete(bench: Bench) -> None:
    from tests.slurm.pipelines import many

    begun = time.monotonic()
    run_id = bench.submit(many, 40)
    submitted = time.monotonic() - begun
    run = bench.wait(run_id)
    print(f"40 steps: submitted in {submitted:.1f} s, completed {time.monotonic() - begun - submitted:.1f} s later")
    assert submitted < 60
    assert run.status.value == "completed"
    assert list(bench.statuses(run).values()) == ["completed"] * 40
    logs = "".join(path.read_text() for path in bench.folder_of(run).rglob("log"))
    assert not re.search("database is locked|Traceback", logs)
