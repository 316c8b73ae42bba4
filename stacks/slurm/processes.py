"""The step's process with all that it starts: what it uses, signals to it, and that nothing of it stays behind.

Standard library only. Linux: reads /proc, and adopts orphans (PR_SET_CHILD_SUBREAPER) so that none escapes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)


def hold_signals() -> None:
    """From now on the watched signals wait until `next_signal` takes them, and orphans become children of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    for number in WATCHED:  # the batch script may ignore them until here, and what is ignored never waits
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def next_signal(timeout_s: float) -> int | None:
    """The next of the watched signals; None where none comes in time."""
    found = signal.sigtimedwait(WATCHED, max(0.0, timeout_s))
    return found.si_signo if found else None


class StepProcess:
    """A process started in this one's process group, with the watched signals as they are by default.

    Raises OSError where the command cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.exit: int | None = None
        """Exit code, or minus the number of the signal that killed it; None while it runs."""
        self.max_rss_bytes = 0
        """Largest sum of the resident memory of all its processes (pages that several share count for each, as in Slurm's own MaxRSS)."""
        self._reaped_cpu_s = self._live_cpu_s = 0.0
        self.pid = os.posix_spawnp(command[0], list(command), dict(environment), setsigmask=(), setsigdef=WATCHED)

    @property
    def cpu_seconds(self) -> float:
        """User and system time of everything started here, on this node."""
        return self._reaped_cpu_s + self._live_cpu_s

    def send(self, number: int) -> None:
        """Signal the process itself, not what it started; nothing happens where it has ended."""
        if self.exit is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def reap(self) -> None:
        """Take note of whatever has ended: the process, and orphans it left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._reaped_cpu_s += usage.ru_utime + usage.ru_stime
            self.max_rss_bytes = max(self.max_rss_bytes, usage.ru_maxrss * 1024)
            if pid == self.pid:
                self.exit = os.waitstatus_to_exitcode(status)

    def sample(self) -> None:
        """Measure what runs now: 16 µs for each process on the node."""
        self.reap()
        live = descendants(os.getpid())
        self._live_cpu_s = sum(process.cpu_seconds for process in live)
        self.max_rss_bytes = max(self.max_rss_bytes, sum(process.rss_bytes for process in live))

    def clear(self, patience_s: float = 5.0) -> None:
        """End whatever is left: SIGTERM (srun passes it to its tasks and waits for them), after `patience_s` SIGKILL."""
        deadline = time.monotonic() + patience_s
        asked: set[int] = set()
        while True:
            self.reap()
            left = [process.pid for process in descendants(os.getpid()) if process.state != "Z"]
            if not left and self.exit is not None:
                self._live_cpu_s = 0.0  # all of it has been reaped
                return
            late = time.monotonic() > deadline
            for pid in left:
                if late or pid not in asked:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked.update(left)
            time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """One line of /proc. `cpu_seconds` includes the children it has waited for."""

    pid: int
    parent: int
    state: str
    cpu_seconds: float
    rss_bytes: int


def descendants(ancestor: int) -> list[Process]:
    """All processes below `ancestor`, which is not one of them."""
    children: dict[int, list[Process]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (process := _read(int(entry.name))) is not None:
            children.setdefault(process.parent, []).append(process)
    found, parents = [], [ancestor]
    while parents:
        below = children.pop(parents.pop(), [])
        found.extend(below)
        parents.extend(process.pid for process in below)
    return found


def _read(pid: int) -> Process | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it has just ended
        return None
    parts = line[line.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    cpu = sum(int(parts[number]) for number in (11, 12, 13, 14)) / _TICKS
    return Process(pid, int(parts[1]), parts[0].decode(), cpu, int(parts[21]) * _PAGE)
