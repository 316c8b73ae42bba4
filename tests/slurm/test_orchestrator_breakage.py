"""What breaks on a cluster, on one of these tests' own: time limits, a controller that goes away, a node that dies."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Any

import psutil
import pytest

from hls_foundry.errors import SlurmError
from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller, open_run
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape
from stacks.slurm.states import JobState
from stacks.slurm.transport import LocalTransport
from tests.conftest import _need_slurm, _running
from tests.slurm.bench import Bench, own_zenml

ONCE = {"max_restarts": 0}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A stack on a cluster of three nodes that nobody else uses."""
    _need_slurm()
    folder = tmp_path_factory.mktemp("bench")
    with _running(Cluster(tmp_path_factory.mktemp("slurm"), default_shape(nodes=3, cpus=4))) as cluster, own_zenml(folder):
        yield Bench(folder, cluster)


def update(bench: Bench, node: str, state: str) -> None:
    command = ["scontrol", "update", f"nodename={node}", f"state={state}", "reason=test"]
    subprocess.run(command, env=bench.cluster.environment, check=True)


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def runs(bench: Bench, notes: Path) -> dict[str, str]:
    """Side by side: on n1 those whose node dies; the rest on the others."""
    from tests.slurm import pipelines

    def only(node: str) -> dict[str, Any]:
        return {"flags": [f"--nodelist={node}"]}

    short = {"time": "1", **only("n2"), **ONCE}
    late = {"deaf": bench.submit(pipelines.deaf, slurm=short), "out of time": bench.submit(pipelines.deaf, slurm=short)}
    stop_supervisor(bench, bench.run(late["out of time"]))
    for node in ("n2", "n3"):
        update(bench, node, "drain")  # what runs there runs on
    found = {
        "goes elsewhere": bench.submit(pipelines.restarted, str(notes / "elsewhere")),
        "may not restart": bench.submit(pipelines.waiting, 300, slurm={**only("n1"), **ONCE}),
        "cannot go elsewhere": bench.submit(pipelines.restarted, str(notes / "pinned"), slurm=only("n1")),
    }
    for node in ("n2", "n3"):
        update(bench, node, "resume")
    return {**late, **found, "controller away": bench.submit(pipelines.waiting, 8, slurm=only("n3"))}


def stop_supervisor(bench: Bench, run: Any) -> None:
    """Leave nobody but Slurm to end the run's first job: each of its signals wakes the supervisor, for a moment."""
    while not (bench.folder_of(run) / "steps" / "ignore_signals" / "usage").exists():  # it is at work, and holds its signals
        time.sleep(0.05)
    words = {"stacks.slurm.supervisor", str(bench.folder_of(run))}
    found = [process for process in psutil.process_iter(["cmdline"]) if words <= set(process.info["cmdline"] or ())]

    def stop_again() -> None:
        with suppress(psutil.NoSuchProcess):
            while found[0].is_running():
                found[0].suspend()
                time.sleep(0.1)

    threading.Thread(target=stop_again, daemon=True).start()


@contextmanager
def watched(bench: Bench, run: Any) -> Iterator[list[str]]:
    """A client that follows the run as `run.py` does; the states of step `wait` that it saw, and "trouble" where Slurm did not answer."""
    seen: list[str] = []
    done = threading.Event()
    transport = LocalTransport({"SLURM_CONF": str(bench.cluster.slurm_conf)})
    follower = Follower(Slurm(transport, patience_s=2), transport, *open_run(transport, str(bench.folder_of(run))), Poller(least_s=0.5))

    def follow() -> None:
        while not follower.finished and not done.wait(0.3):
            try:
                state = next(row.state.value for row in follower.rows() if row.step == "wait")
            except SlurmError:
                state = "trouble"
            seen.extend([state] if seen[-1:] != [state] else [])

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
        thread.join(60)  # the run has ended, and the client has to notice
        assert not thread.is_alive()
    finally:
        done.set()
        thread.join()


def test_a_run_and_its_client_outlive_a_controller_that_restarts(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["controller away"], lambda run: "wait" in run.steps)
    with watched(bench, run) as seen:
        while "RUNNING" not in seen:
            time.sleep(0.2)
        time.sleep(5)  # slurmctld saves what it knows with a delay, and kill -9 would lose the rest
        bench.cluster.stop_controller()
        while "trouble" not in seen:
            time.sleep(0.2)
        time.sleep(5)
        bench.cluster.start_controller()
        run = bench.wait(runs["controller away"])
    assert (run.status.value, set(bench.statuses(run).values())) == ("completed", {"completed"})
    assert [state for state in seen if state in ("RUNNING", "trouble", "COMPLETED")][-1] == "COMPLETED"


def test_a_node_dies(bench: Bench, runs: dict[str, str], notes: Path) -> None:
    """Its jobs: started again elsewhere; failed, where they may not be; waiting for the node, where they cannot be, until stopped."""
    from zenml.utils.run_utils import stop_run

    at_work = {"goes elsewhere": "hang_at_first", "may not restart": "wait", "cannot go elsewhere": "hang_at_first"}
    for name, step in at_work.items():
        run = bench.wait(runs[name], lambda run, step=step: step in run.steps and bench.job(run, step).state is JobState.RUNNING)
        assert bench.job(run, step).node_list == "n1"
    while not ((notes / "elsewhere").exists() and (notes / "pinned").exists()):
        time.sleep(0.2)
    bench.cluster.kill_slurmd("n1")
    died = time.monotonic()

    run = bench.wait(runs["may not restart"])
    print(f"NODE_FAIL: the run failed {time.monotonic() - died:.0f} s after the node's death")
    assert (run.status.value, bench.statuses(run)) == ("failed", {"one": "completed", "wait": "failed"})
    assert "NODE_FAIL: its node died" in bench.reason(run, "wait")

    run = bench.wait(runs["goes elsewhere"])
    print(f"restarted elsewhere and completed {time.monotonic() - died:.0f} s after the node's death")
    assert (run.status.value, (notes / "elsewhere").read_text()) == ("completed", "0\n1\n")
    assert run.steps["hang_at_first"].version == 1
    assert bench.job(run, "hang_at_first").node_list in ("n2", "n3")

    run = bench.wait(runs["cannot go elsewhere"], lambda run: bench.job(run, "hang_at_first").state is JobState.PENDING)
    assert run.status.value == "running"  # until the node is back, or somebody has enough
    stop_run(run, graceful=True)
    run = bench.wait(runs["cannot go elsewhere"])
    assert (run.status.value, bench.statuses(run)) == ("stopped", {"hang_at_first": "stopped"})


def test_a_step_that_ignores_its_time_limit_ends_as_failed_and_says_so(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["deaf"])
    assert run.status.value == "failed"
    assert set(bench.statuses(run).values()) <= {"failed"}  # none where a busy machine had not started it by then
    assert "step ignore_signals: Slurm job" in run.get_body().status_reason
    assert "time limit" in run.get_body().status_reason
    assert bench.outcome(run)["steps"]["add"]["state"] == "CANCELLED"
    assert written_after(bench, run, "ignore_signals") < 60


def test_a_job_that_only_slurm_can_end_is_timeout(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["out of time"])
    assert bench.job(run, "ignore_signals").state is JobState.TIMEOUT
    assert run.status.value == "failed"
    assert set(bench.statuses(run).values()) <= {"failed"}
    assert "TIMEOUT: " in run.get_body().status_reason
    assert written_after(bench, run, "ignore_signals") < 60


def written_after(bench: Bench, run: Any, step: str) -> float:
    """Seconds from the end of the step's job to that of the run in ZenML."""
    ended = bench.job(run, step).ended
    assert ended is not None
    delay = (run.end_time.replace(tzinfo=UTC) - ended).total_seconds()
    print(f"{step}: {bench.job(run, step).state.value}, the run's end was written {delay:.1f} s after that of the job")
    return delay
