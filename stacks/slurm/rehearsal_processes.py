"""The rehearsal cluster's processes: which are alive, which are its own, and how they end. Reads Linux's /proc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import SlurmError

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
PACKAGES = {
    "munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm",
    "ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux",
}  # fmt: skip
DAEMONS = ("munged", "slurmctld", "slurmd")
TICK_S = 0.02
BOOT = Path("/proc/sys/kernel/random/boot_id")


def search_path() -> str:
    """The PATH with the folders of system programs, which a user's own often lacks."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])


def missing_programs(programs: Iterable[str]) -> str:
    """What to install for those of `programs` that are not there, in one line; empty where nothing is missing."""
    absent = [program for program in programs if shutil.which(program, path=search_path()) is None]
    packages = sorted({PACKAGES[program] for program in absent})
    if not absent:
        return ""
    return f"{', '.join(absent)} not found: install Debian's {' '.join(packages)} (as root: make system)"


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """Run a system program; its output is captured, its return code is the caller's to judge. Raises SlurmError on a time-out."""
    name = Path(command[0]).name
    try:
        return subprocess.run(
            command,
            env={"PATH": search_path(), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,  # a Ctrl-C at the terminal is for run.py, not for a daemon
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name} of the rehearsal cluster gave no answer in {timeout:g} s: python run.py cluster down, then up") from None
    except OSError as error:
        raise SlurmError(f"{name} cannot be started: {error.strerror}") from None


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


def daemons_of(folder: Path) -> list[Process]:
    """The daemons of the cluster in `folder`, also those that never got as far as writing a pid file."""
    mark = _mark(folder)
    return _select(lambda pid, name: name in DAEMONS and mark in _environment(pid))


def job_processes_of(folder: Path) -> list[Process]:
    """What the cluster in `folder` runs for jobs: the tasks and their slurmstepd, which outlive a slurmd that is killed."""
    mark = _mark(folder)

    def ours(pid: int, name: str) -> bool:
        if name == "slurmstepd":  # it writes its title over its environment, but holds the log
            return any(target.is_relative_to(folder) for target in _open_files(pid))
        environment = _environment(pid)
        return mark in environment and any(entry.startswith(b"SLURMD_NODENAME=") for entry in environment)

    return _select(ours)


def _select(ours: Callable[[int, str], bool]) -> list[Process]:
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [process for number in numbers if (process := Process.of(number))]
    return [process for process in found if process.pid != os.getpid() and ours(process.pid, process.name)]


def _mark(folder: Path) -> bytes:
    return f"SLURM_CONF={folder}/etc/slurm.conf".encode()


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _open_files(pid: int) -> list[Path]:
    try:
        return [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []
