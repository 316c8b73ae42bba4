"""Trainings on two nodes of a real Slurm cluster: what one node computes, through signals, a failing rank and a killed one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hls_foundry.errors import TrainingError
from hls_foundry.training.cluster import Allocation, first_address
from hls_foundry.training.launcher import launch
from hls_foundry.training.loop import train
from hls_foundry.training.request import TrainingRequest
from stacks.slurm.rehearsal import Cluster

MakeRequest = Callable[..., TrainingRequest]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
SETTINGS = {
    "training.max_steps": STEPS, "training.epochs": 100, "training.validate_every": 20, "training.checkpoint_every": 1000,
    "training.loss": "dice_cross_entropy", "model.dropout": 0.0,
}  # fmt: skip

LAUNCH_EACH = """
import json, sys, time
from pathlib import Path
from hls_foundry.errors import FoundryError, Preempted
from hls_foundry.training.launcher import launch
from hls_foundry.training.request import TrainingRequest
for path in sys.argv[2:]:
    try:
        said = {"result": launch(TrainingRequest.load(Path(path))).model_dump(mode="json")}
    except (FoundryError, Preempted) as error:
        said = {"kind": type(error).__name__, "message": str(error), "signal": getattr(error, "signal_number", 0)}
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({**said, "time": time.time()}) + "\\n")
"""
"""Runs on the batch host: one launch after the other, a line on each."""


class Job:
    """A Slurm job of two nodes that launches `requests` one after the other."""

    def __init__(self, cluster: Cluster, folder: Path, requests: list[TrainingRequest]) -> None:
        self.environment = {**os.environ, **cluster.environment}
        self.folder, self.log = folder, folder / "log"
        for request in requests:
            request.folder.mkdir(parents=True, exist_ok=True)
            request.save(request.folder / "asked.json")
        program = [sys.executable, "-c", LAUNCH_EACH, str(folder / "said"), *(str(r.folder / "asked.json") for r in requests)]
        script = folder / "job.sh"
        quoted = {name: shlex.quote(str(folder / name)) for name in ("progress", "usage")}
        script.write_text(
            f"#!/bin/bash\nunset SLURM_EXPORT_ENV\ncd {shlex.quote(str(ROOT))}\nexport HLS_PROGRESS_FILE={quoted['progress']}\n"
            f"export HLS_USAGE_FOLDER={quoted['usage']}\nexec {shlex.join(program)}\n"
        )
        options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--export=NONE", f"--output={self.log}"]
        self.id = self.run("sbatch", "--parsable", *options, str(script))

    def run(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def said(self, launches: int) -> dict[str, Any]:
        """What launch number `launches` (from 1) said."""
        path = self.folder / "said"
        self.wait(lambda: path.is_file() and path.read_text().count("\n") >= launches)
        line: dict[str, Any] = json.loads(path.read_text().splitlines()[launches - 1])
        return line

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not done():
            assert time.monotonic() < deadline, self.log.read_text() if self.log.is_file() else self.run("squeue")
            time.sleep(0.01)


@pytest.fixture
def submit(slurm_cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def one(*requests: TrainingRequest) -> Job:
        jobs.append(Job(slurm_cluster, tmp_path, list(requests)))
        return jobs[-1]

    yield one
    for job in jobs:
        job.run("scancel", job.id)
        job.wait(lambda job=job: not job.run("squeue", "--noheader", f"--user={os.getuid()}"))  # type: ignore[misc]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def test_two_nodes_do_as_one_through_signals_to_the_job_and_to_its_steps(submit: Callable[..., Job], make_request: MakeRequest) -> None:
    """A warning to the batch host (time limit) and twice, then SIGTERM to the steps alone (preemption with grace), then to the end."""
    alone = train(make_request("alone", **SETTINGS))
    request = make_request("nodes", **SETTINGS)
    job = submit(request, request, request)

    job.wait(lambda: len(losses(request.folder)) >= 2)
    job.run("scancel", "--batch", "--signal=USR1", job.id)
    job.run("scancel", "--batch", "--signal=TERM", job.id)
    first = job.said(1)
    done = len(losses(request.folder))
    assert (first["kind"], first["signal"]) == ("Preempted", signal.SIGUSR1)
    assert f"after step {done} of {STEPS}" in first["message"]
    assert (job.folder / "progress").read_text() == str(done)

    job.wait(lambda: len(losses(request.folder)) >= done + 2)
    job.run("scancel", "--signal=TERM", job.id)
    second = job.said(2)
    assert (second["kind"], second["signal"]) == ("Preempted", signal.SIGTERM)
    again = len(losses(request.folder))
    assert done + 2 <= again < STEPS

    result = job.said(3)["result"]
    assert (result["processes"], result["threads"], result["resumed_from"], result["steps"]) == (2, 1, again, STEPS)
    # Sums of fp32 numbers in another order: gradients first, then, step by step, the weights.
    np.testing.assert_allclose([line[:2] for line in losses(request.folder)], [line[:2] for line in losses(alone.state.parent)], rtol=1e-4)
    np.testing.assert_allclose(losses(request.folder), losses(alone.state.parent), rtol=1e-2)
    assert result["best"]["step"] == alone.best["step"]
    assert result["best"]["miou"] == pytest.approx(alone.best["miou"], abs=2e-3)

    usage = [json.loads(path.read_bytes()) for path in (job.folder / "usage").glob("*.json")]
    assert sorted(record["host"] for record in usage) == ["n1"] * 3 + ["n2"] * 3
    assert all(record["cpu_seconds"] > 1 and record["max_rss_bytes"] > 2**28 and record["elapsed_s"] > 1 for record in usage)


def test_a_rank_that_fails_or_is_killed_ends_the_job_and_one_node_goes_on_from_its_checkpoint(
    submit: Callable[..., Job], make_request: MakeRequest, chips: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(chips / "splits.csv")
    (chips / "short_merged.tif").write_bytes((chips / table["image"][0]).read_bytes()[:5000])
    table.loc[7, "image"] = "short_merged.tif"  # the second validation chip, which the second node reads
    table.to_csv(tmp_path / "splits.csv", index=False)
    broken = make_request("broken", splits=tmp_path / "splits.csv", **{**SETTINGS, "training.validate_every": 1})
    killed = make_request("killed", **{**SETTINGS, "training.checkpoint_every": 4})
    job = submit(broken, killed)

    said = job.said(1)
    assert "short_merged.tif is " in said["message"]
    assert "\n" not in said["message"]

    job.wait(lambda: len(losses(killed.folder)) >= 6)
    victim = json.loads((killed.folder / "workers" / "rank-1.json").read_bytes())["pid"]
    os.kill(victim, signal.SIGKILL)
    at = time.time()
    said = job.said(2)
    assert said["message"].startswith("rank 1 of 2 was killed by signal 9")
    # The other rank hears of it at once; then processes end, which on a busy machine takes longer. A time-out would take 30 minutes.
    assert json.loads((killed.folder / "workers" / "rank-0.json").read_bytes())["time"] - at < 5
    assert said["time"] - at < 30
    done = len(losses(killed.folder))

    result = train(killed)
    assert result.resumed_from is not None
    assert done - 4 <= result.resumed_from <= done
    assert losses(killed.folder)[-1][0] == STEPS
    whole = train(make_request("whole", **SETTINGS))
    np.testing.assert_allclose([line[:2] for line in losses(killed.folder)], [line[:2] for line in losses(whole.state.parent)], rtol=1e-4)


def test_a_first_node_whose_name_does_not_resolve_is_reached_by_slurms_address(
    slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the rehearsal cluster's nodes resolve inside of its jobs at most."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    assert first_address("localhost") == "localhost"
    assert first_address("n1") == slurm_cluster.addresses()["n1"]
    with pytest.raises(TrainingError, match="n99"):
        first_address("n99")


def test_a_job_of_several_nodes_needs_srun_and_a_batch_that_divides(
    slurm_cluster: Cluster, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "2",
        "PATH": slurm_cluster.environment["PATH"],
    }
    with pytest.raises(TrainingError, match="there is no srun on the PATH"):
        Allocation.of({**job, "PATH": "/nowhere"})
    assert Allocation.of({**job, "SLURM_JOB_NUM_NODES": "1"}) is None
    assert Allocation.of({**job, "SLURM_STEP_NUM_TASKS": "3"}) is None
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        TrainingError, match=r"batch_size 4 is global: it must be a multiple of nodes × processes × accumulation \(3 × 1 × 1\)"
    ):
        launch(make_request())
    shared = Allocation.of({**job, "SLURM_TASKS_PER_NODE": "3(x3)", "SLURM_RESTART_COUNT": "2"})
    assert shared is not None
    assert (shared.cpus, shared.restarts, shared.nodes) == (6, 2, 3)
    assert shared.preferred_port != Allocation.of(job).preferred_port  # type: ignore[union-attr]
