"""A rehearsal's processes: which are alive, which are its own, and how they end. Reads Linux's /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK_S = 0.02
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """A process as it can be told from a later one with the same number: start time in clock ticks since this boot."""

    pid: int
    started: int
    name: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The living process `pid`; None where there is none or only a zombie that nobody has waited for."""
        with suppress(OSError, ValueError, IndexError):
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            fields = rest.split()
            if fields[0] not in "ZX":
                return cls(pid, int(fields[19]), head.partition("(")[2], BOOT.read_text().strip())
        return None

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self


def end(processes: Sequence[Process], patience_s: float = 10) -> None:
    """End these processes: SIGTERM to all at once, SIGKILL to those that are there after `patience_s`."""
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        for process in processes:
            if process.alive:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        if wait_until(lambda: not any(process.alive for process in processes), seconds):
            return


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """True once `condition()` holds, False where it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK_S)
    return True


def processes_where(ours: Callable[[int, str], bool]) -> list[Process]:
    """The living processes, but for this one, of which `ours(pid, name)` holds."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [process for number in numbers if (process := Process.of(number))]
    return [process for process in found if process.pid != os.getpid() and ours(process.pid, process.name)]


def environment_of(pid: int) -> list[bytes]:
    """The entries NAME=VALUE that the process was started with; none where it is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
