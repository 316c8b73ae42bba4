"""What the end of a step's process means: done, failed, stopped, tried again, or interrupted and to be started again by Slurm.

Pure, and standard library only.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from stacks.slurm.attempts import COMPLETED, FAILED, REQUEUED, STOPPED
from stacks.slurm.own_job import ENDED, RESTARTING, Standing

INTERRUPTED = 85
"""Exit code of a step that a signal interrupted, everything saved."""
REQUEUE, RETRY = "requeue", "retry"
_ASKED_TO_END = frozenset(code for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT) for code in (-number, 128 + number))
"""Exit codes of a process that dies of the signal passed on to it; of a shell or container around it, 128 more."""


@dataclass
class Watch:
    """What has happened to one start of the job so far."""

    warned: bool = False
    terminated: bool = False
    overdue: bool = False
    """The process did not end when asked to, and was killed."""
    superseded: bool = False
    """Slurm gave this node up and started the job elsewhere, while this process lived on."""
    kill_at: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What an end of the step's process means: an outcome, or what to do: retry (another attempt, where one is left) or requeue."""

    what: str
    reason: str = ""


def judge(code: int, watch: Watch, standing: Standing, *, stopping: bool) -> Verdict:
    """`code`: exit code, or minus the signal; `standing`: how Slurm sees the job now; `stopping`: the run was asked to stop."""
    if code == 0:
        return Verdict(COMPLETED)
    if stopping:
        return Verdict(STOPPED, "the run was stopped")
    if standing.is_ == RESTARTING:
        return Verdict(REQUEUED)
    if standing.is_ == ENDED:
        if standing.reason:
            return Verdict(FAILED, f"ended by Slurm ({standing.reason})")
        return Verdict(STOPPED, "cancelled from outside (scancel, or preempted where the site does not requeue)")
    asked = watch.warned or watch.terminated
    if code == INTERRUPTED or (asked and (code in _ASKED_TO_END or watch.overdue)):
        return Verdict(REQUEUE)
    return Verdict(RETRY, describe(code))


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}{' (command not found)' if code == 127 else ''}"
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"killed by {name}{' (out of memory?)' if number == signal.SIGKILL else ''}"
