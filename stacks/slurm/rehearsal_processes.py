"""The rehearsal cluster's programs: which are missing, how they are run, and which of its processes live."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hls_foundry.errors import SlurmError
from stacks.rehearsal.processes import Process, environment_of, processes_where

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
PACKAGES = {
    "munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm",
    "ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux",
}  # fmt: skip
DAEMONS = ("munged", "slurmctld", "slurmd")


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


def daemons_of(folder: Path) -> list[Process]:
    """The daemons of the cluster in `folder`, also those that never got as far as writing a pid file."""
    mark = _mark(folder)
    return processes_where(lambda pid, name: name in DAEMONS and mark in environment_of(pid))


def job_processes_of(folder: Path) -> list[Process]:
    """What the cluster in `folder` runs for jobs: the tasks and their slurmstepd, which outlive a slurmd that is killed."""
    mark = _mark(folder)

    def ours(pid: int, name: str) -> bool:
        if name == "slurmstepd":  # it writes its title over its environment, but holds the log
            return any(target.is_relative_to(folder) for target in _open_files(pid))
        environment = environment_of(pid)
        return mark in environment and any(entry.startswith(b"SLURMD_NODENAME=") for entry in environment)

    return processes_where(ours)


def _mark(folder: Path) -> bytes:
    return f"SLURM_CONF={folder}/etc/slurm.conf".encode()


def _open_files(pid: int) -> list[Path]:
    try:
        return [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []
