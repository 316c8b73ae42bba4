"""A run folder written by hand with one step of a few lines, whose job the real supervisor runs on a real cluster."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")
PREAMBLE = """\
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path({folder!r})
def note(name, value):
    (folder / '.new').write_text(str(value)); (folder / '.new').rename(folder / name)
start = int((folder / 'starts').read_text()) if (folder / 'starts').exists() else 0
note('starts', start + 1)
note(f'environment{{start}}', ' '.join(f'{{k}}={{v}}' for k, v in os.environ.items() if k.startswith('HLS_STEP')))
def save(number, frame):
    note('progress', 120); os._exit(85)
"""
"""What every step text may use: `start` (0 the first time), `note(NAME, VALUE)`, and `save`, a signal handler as training has it."""


def until(condition: Callable[[], Any], what: str, seconds: float = 100) -> Any:
    """Wait until `condition` gives something, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Cluster:
    """Slurm's commands on the cluster that `environment` names."""

    environment: Mapping[str, str]
    submitted: list[int] = field(default_factory=list)

    def __call__(self, *command: str) -> str:
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        return done.stdout

    def submit(self, folder: Path, command: str, *options: str) -> int:
        """Queue a batch script that becomes `command`."""
        script = folder / "job.sh"
        script.write_text(f"#!/bin/bash\ncd {shlex.quote(str(ROOT))}\nexec {command}\n", encoding="utf-8")
        fixed = ("--parsable", "--mem=40", "--ntasks-per-node=1", "--requeue", "--open-mode=append", f"--output={folder / 'log'}")
        self.submitted.append(int(self("sbatch", *fixed, *options, str(script))))
        return self.submitted[-1]

    def show(self, job: int) -> str:
        return self("scontrol", "-o", "show", "job", str(job))

    def state(self, job: int) -> str:
        return self.show(job).split(" JobState=")[1].split(" ")[0]

    def ended(self, job: int) -> str:
        """Wait for the end of the job; returns its state."""
        return str(until(lambda: state if (state := self.state(job)) not in ACTIVE else None, f"the end of job {job}"))


@dataclass
class Story:
    """One step in a run folder of its own."""

    cluster: Cluster
    run: Path
    job: int = 0

    @property
    def folder(self) -> Path:
        return self.run / "steps" / "train"

    @property
    def state(self) -> dict[str, Any]:
        """state.json as it is now."""
        content: dict[str, Any] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        return content

    @property
    def runs(self) -> list[tuple[int, int, int | None]]:
        """(restart, attempt, exit) of each run."""
        return [(run["restart"], run["attempt"], run["exit"]) for run in self.state["runs"]]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    @property
    def closed(self) -> bool:
        """Whether the closing command has run."""
        return (self.run / "closed").exists()

    def write(self, step: str, *, mode: str = "continue_on_failure", **limits: float) -> Story:
        """The run folder of a step that runs the Python text `step`."""
        self.folder.mkdir(parents=True)
        (self.run / "step.py").write_text(PREAMBLE.format(folder=str(self.folder)) + step, encoding="utf-8")
        closing = [sys.executable, "-c", f"open({str(self.run / 'closed')!r}, 'w').close()"]
        train = {"folder": "steps/train", "after": [], "command": [sys.executable, "-u", str(self.run / "step.py")], **limits}
        plan = {"run_id": "r", "run_name": "r", "execution_mode": mode, "steps": {"train": train}, "closing": {"command": closing}}
        (self.run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        return self

    @property
    def command(self) -> str:
        return f"{sys.executable} -m stacks.slurm.supervisor {shlex.quote(str(self.run))} train"

    def submit(self, *options: str) -> Story:
        """Queue the job, without jobs.json: it waits for `complete`."""
        self.job = self.cluster.submit(self.folder, self.command, *options)
        return self

    def complete(self, **others: int) -> Story:
        """The submission came to its end: jobs.json is there."""
        jobs = {"jobs": {"train": self.job, **others}, "closing": 0, "failure": None, "submitted_at": "2026-01-01T00:00:00Z"}
        (self.run / ".jobs").write_text(json.dumps(jobs), encoding="utf-8")
        (self.run / ".jobs").rename(self.run / "jobs.json")
        return self

    def noted(self, name: str) -> str:
        """Wait for what the step notes as `name`."""
        path = self.folder / name
        until(path.exists, f"{name} of {self.run.name}")
        return path.read_text(encoding="utf-8")

    def signal(self, number: str) -> None:
        """Send a signal to the batch process, as `#SBATCH --signal=B:…` does."""
        self.cluster("scancel", f"--signal={number}", "--batch", str(self.job))

    def ended(self) -> str:
        return self.cluster.ended(self.job)
