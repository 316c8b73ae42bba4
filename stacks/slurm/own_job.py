"""What a running job asks of Slurm about itself: how it stands, to be started again, and that other jobs of its run end.

Standard library only, since the supervisor is; submitting and watching runs from outside is `client.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

_TRANSIENT = re.compile(r"timed out|unable to contact|socket|connection|temporar|try again|zero bytes|slurmctld", re.IGNORECASE)
_STATE = re.compile(r" JobState=([A-Z_]+) Reason=(.*?) Dependency=")
_RESTARTS = re.compile(r" Requeue=\d Restarts=(\d+) ")
_END = re.compile(r" EndTime=(\S+) ")

RUNNING, RESTARTING, ENDED, UNKNOWN = "running", "restarting", "ended", "unknown"


@dataclass(frozen=True)
class Standing:
    """How Slurm sees this start of the job.

    `is_`: it runs; Slurm starts it again (requeued, preempted, a node failed); it ends for good; or Slurm did not say.
    """

    is_: str
    reason: str = ""
    """Slurm's reason for an end, such as TimeLimit; empty where it was cancelled."""
    end: float | None = None
    """When its time is up (limit, or the grace time of a preemption), seconds since the epoch."""


@dataclass(frozen=True)
class Answer:
    """What a Slurm command said. `error` is empty where it did as it was told."""

    text: str = ""
    error: str = ""

    @property
    def transient(self) -> bool:
        """Whether the same command may succeed later."""
        return _TRANSIENT.search(self.error) is not None


def run_command(command: Sequence[str], timeout_s: float = 20) -> Answer:
    """Run one Slurm command."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Answer(error=f"{command[0]} timed out after {timeout_s:.0f} s")
    except OSError as error:
        return Answer(error=f"{command[0]} cannot be started: {error.strerror}")
    return Answer(done.stdout, "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}")


class OwnJob:
    """The job that this process is the batch script of. `restart` counts Slurm's restarts of it, 0 at first."""

    def __init__(self, job: int, restart: int, run: Callable[[Sequence[str]], Answer] = run_command) -> None:
        self.job, self.restart, self._run = job, restart, run

    def standing(self) -> Standing:
        """Ask once; blocks for 20 s at most."""
        answer = self._run(["scontrol", "-o", "show", "job", str(self.job)])
        return parse_standing(answer.text, self.restart)

    def requeue(self) -> Answer:
        """Ask for a restart. Slurm then ends this start."""
        return self._run(["scontrol", "requeue", str(self.job)])

    def cancel(self, others: Iterable[int], *, pending_only: bool) -> Answer:
        """Cancel other jobs; those that have ended already are none of Slurm's concern."""
        ids = [str(job) for job in others]
        return self._run(["scancel", "--quiet", *(["--state=PENDING"] if pending_only else []), *ids]) if ids else Answer()


def parse_standing(text: str, restart: int) -> Standing:
    """Read a line of `scontrol -o show job`.

    A job that is being ended is COMPLETING whether it was cancelled or requeued. What tells these apart is that Slurm counts the
    restart when it decides on it, before it sends the first signal (seen in 22.05; preemption and node failure do the same).
    """
    state, restarts, end = _STATE.search(text), _RESTARTS.search(text), _END.search(text)
    if state is None or restarts is None:
        return Standing(UNKNOWN)
    if int(restarts[1]) > restart:
        return Standing(RESTARTING)
    if state[1] in ("RUNNING", "SUSPENDED", "CONFIGURING"):
        return Standing(RUNNING, end=_seconds(end[1]) if end else None)
    return Standing(ENDED, "" if state[2] in ("None", "NonZeroExitCode") else state[2])


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # "Unknown", "NONE"
        return None
