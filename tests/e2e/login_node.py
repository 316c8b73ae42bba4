"""A login node for tests: one user's home and ZenML store, a rehearsal cluster, and run.py in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from stacks.slurm.rehearsal import PROGRAMS, Cluster
from stacks.slurm.rehearsal_config import default_shape
from stacks.slurm.rehearsal_processes import missing_programs
from tests.conftest import ROOT, TAKE_DOWN, missing

SMALL = (
    "--task", "flood", "--data", "synthetic://?chips=16&size=64&seed=3",
    "--set", "training.crop_size=64", "--set", "training.batch_size=2", "--set", "inference.tile=64",
    "--set", "validation.max_bad_share=0", "--set", "promotion.min_iou=0", "--set", "promotion.min_gain_over_baseline=-1",
)  # fmt: skip
"""The smallest chips, and a gate that every model passes."""

STEPS = ["ingest", "validate", "split", "fine_tune", "evaluate", "promote", "publish"]
PATIENCE_S = 900.0


@dataclass
class LoginNode:
    """`folder`: holds the user's home; `before`: words before every command, such as those that make it another user's.

    `more`: further variables of the environment; `tree`: where run.py is.
    """

    folder: Path
    before: Sequence[str] = ()
    more: dict[str, str] = field(default_factory=dict)
    tree: Path = ROOT

    @property
    def home(self) -> Path:
        return self.folder / "foundry"

    @property
    def environment(self) -> dict[str, str]:
        places = {"HLS_FOUNDRY_HOME": str(self.home), "ZENML_CONFIG_PATH": str(self.folder / "zenml"), "OMP_NUM_THREADS": "1"}
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HLS_", "ZENML_"))}
        return {**own, **places, **self.more}

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.home, default_shape())

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [*self.before, sys.executable, str(self.tree / "run.py"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, cwd="/"
        )

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        return ended(process, expect)

    def hpc(self, *arguments: str) -> list[str]:
        return ["--stack", "hpc", *SMALL, *arguments]

    def slurm(self, *command: str) -> str:
        """The output of one of Slurm's commands, given by this user."""
        environment = {**os.environ, **self.cluster.environment}
        done = subprocess.run([*self.before, *command], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def run_folders(self) -> set[Path]:
        """Of all runs that were submitted to the end."""
        return {path.parent for path in (self.home / "slurm").glob("*/jobs.json")}


def ended(process: subprocess.Popen[str], expect: int = 0, seconds: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """What run.py said, once it has ended with the exit code expected."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == expect, f"{process.args}: {process.returncode}\n{out[-4000:]}\n{err[-4000:]}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def on_a_cluster(login: LoginNode, *shape: str) -> Iterator[LoginNode]:
    """`login` with a rehearsal cluster up, as the user starts one; taken down as well where pytest is killed."""
    if what := missing_programs(PROGRAMS):
        missing(what)
    guard = [sys.executable, "-c", TAKE_DOWN, str(ROOT), str(login.home)]
    with subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True):
        try:
            login.run("cluster", "up", *shape)
            yield login
        finally:
            login.run("cluster", "down")


def until(found: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """What `found` gives, once that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.05)
    pytest.fail(f"{what}: not after {seconds:g} s")


@dataclass
class SubmittedRun:
    """A run as its folder shows it."""

    folder: Path

    @property
    def name(self) -> str:
        return str(json.loads((self.folder / "plan.json").read_text())["run_name"])

    def job(self, step: str) -> int:
        return int(json.loads((self.folder / "jobs.json").read_text())["jobs"][step])

    def log(self, step: str = "fine_tune") -> str:
        path = self.folder / "steps" / step / "log"
        return path.read_text() if path.exists() else ""

    def state(self, step: str = "fine_tune") -> dict[str, Any]:
        path = self.folder / "steps" / step / "state.json"
        return json.loads(path.read_text()) if path.exists() else {"restarts": 0, "runs": []}  # type: ignore[no-any-return]

    def outcome(self) -> dict[str, Any]:
        """What the closing job wrote; empty until then."""
        path = self.folder / "outcome.json"
        return json.loads(path.read_text()) if path.exists() else {}


@dataclass
class Training:
    """One training's work folder, found by its number of steps."""

    folder: Path

    @classmethod
    def of(cls, home: Path, max_steps: int) -> Training | None:
        for request in (home / "training").glob("*/request.json"):
            if json.loads(request.read_text())["training"]["max_steps"] == max_steps:
                return cls(request.parent)
        return None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of every optimiser step."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [record for record in map(json.loads, (line for line in lines if line.endswith("\n"))) if record["kind"] == "train"]

    @property
    def step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes on all nodes, which are on this machine."""
        wanted = ["-m", "hls_foundry.training", str(self.folder / "request.json")]
        return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [])[-3:] == wanted]

    def hold(self) -> list[psutil.Process]:
        """Stop its workers' processes, as a slow file system would, so that no event comes too late on a fast machine."""
        return _signalled(self.workers(), signal.SIGSTOP)

    @contextmanager
    def held_at(self, step: int) -> Iterator[list[psutil.Process]]:
        """Wait until `step` is done, and hold the training there while the body runs."""
        until(lambda: self.step >= step, f"step {step} of {self.folder}")
        held = self.hold()
        assert held, "the training goes on"
        try:
            yield held
        finally:
            _signalled(held, signal.SIGCONT)


def _signalled(processes: list[psutil.Process], number: signal.Signals) -> list[psutil.Process]:
    alive = []
    for process in processes:
        try:
            process.send_signal(number)
            alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive
