"""Which folder a training works in: the one of its configuration, or another beside it while that one is somebody else's.

HOME/training/DIGEST/       the first; stopped trainings go on here, whoever starts them again
HOME/training/DIGEST.2/ …   for a second run of the same configuration at the same time
…/owner                     locked as long as its training runs; names the run, so that a restart finds its own folder again
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import TrainingError

RUN = "HLS_RUN_ID"
"""Environment variable with what names a run over the restarts of its job."""

REENTER = "HLS_STEP_REENTER"
"""Set to 1 where Slurm has started the job again in the middle of the step."""

MOST = 100


@dataclass(frozen=True)
class WorkFolder:
    """`restarted`: the folder holds what this very run had done before its job was started again."""

    path: Path
    restarted: bool


@contextmanager
def claimed(first: Path, environment: Mapping[str, str] = os.environ) -> Iterator[WorkFolder]:
    """The folder to work in, nobody else's until the context ends. Raises TrainingError, one line, where it cannot be written."""
    run = environment.get(RUN, "")
    names = [first, *(first.with_name(f"{first.name}.{number}") for number in range(2, MOST))]
    restarted = run != "" and environment.get(REENTER) == "1"
    own = [folder for folder in names if restarted and _owner(folder) == run]
    for folder in (*own, *names):
        descriptor = _lock(folder)
        if descriptor is None:
            continue
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, run.encode(), 0)
            yield WorkFolder(folder, folder in own)
        finally:
            os.close(descriptor)
        return
    raise TrainingError(f"{MOST - 1} trainings of this very configuration are running in {first.parent}: wait for one of them")


def _owner(folder: Path) -> str | None:
    try:
        return (folder / "owner").read_text(encoding="utf-8")
    except OSError:
        return None


def _lock(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TrainingError(f"cannot write {folder}: {error.strerror or error}; free some space or set HLS_FOUNDRY_HOME") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise TrainingError(f"{folder} cannot be locked ({error.strerror}): put HLS_FOUNDRY_HOME on a file system with locks") from None
    return descriptor
