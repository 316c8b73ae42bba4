"""What each worker says of itself in `workers/rank-N.json`, and what became of the training by what they said."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hls_foundry import errors
from hls_foundry.errors import FoundryError, Preempted, TrainingError
from hls_foundry.training.atomic import write_atomically
from hls_foundry.training.interruption import STOP_SIGNALS
from hls_foundry.training.request import TrainingRequest, TrainingResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerReport:
    """One worker: its rank over all nodes, and how it ended."""

    rank: int
    pid: int
    state: str = "running"  # running, done, preempted, failed, killed
    time: float = 0.0
    error: str = ""  # class of the exception
    message: str = ""
    trace: str = ""
    signal: int = 0  # that stopped or killed it

    def save(self, folder: Path) -> None:
        """Write it below `folder` as this rank's report."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"rank-{self.rank}.json", json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> WorkerReport:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_bytes()))

    @classmethod
    def of_error(cls, rank: int, error: BaseException) -> WorkerReport:
        """How a worker ended that raised `error`: preempted, or failed with its trace."""
        state = "preempted" if isinstance(error, Preempted) else "failed"
        number = error.signal_number if isinstance(error, Preempted) else 0
        message = str(error) if isinstance(error, FoundryError | Preempted) else f"{type(error).__name__}: {error}"
        return cls(rank, os.getpid(), state, time.time(), type(error).__name__, message, "".join(traceback.format_exception(error)), number)


def report_killed(folder: Path, rank: int, pid: int, number: int, when: float) -> None:
    """Note that worker `rank` was killed by signal `number` at `when` (Unix time), unless it said itself how it ended."""
    path = folder / f"rank-{rank}.json"
    if not path.is_file() or WorkerReport.load(path).state == "running":
        WorkerReport(rank, pid, "killed", when, signal=number).save(folder)


def outcome(request: TrainingRequest, reports: Sequence[WorkerReport], received: int, workers: int) -> TrainingResult:
    """The result of a training with `workers` processes in all, after the launcher `received` a signal (or 0).

    Raises the FoundryError that ended it, TrainingError for anything else, or Preempted.
    """
    failed = sorted((report for report in reports if report.state == "failed"), key=lambda report: report.time)
    # What a rank reports after another one died is the broken connection; the cause is the dead one's.
    own = [report for report in failed if not _is_broken_connection(report)]
    preempted = [report for report in reports if report.state == "preempted"]
    if own:
        raise _cause(own[0], request)
    if preempted:
        raise Preempted(preempted[0].message, preempted[0].signal)
    if (request.folder / "result.json").is_file():
        return TrainingResult.load(request.folder)
    killed = sorted((report for report in reports if report.state == "killed"), key=lambda report: report.time)
    asked = received or next((report.signal for report in killed if report.signal in STOP_SIGNALS), 0)
    if asked:
        raise Preempted(f"stopped by signal {asked} before the first step", asked)
    # Without a word of its own or of its agent a worker was killed together with all else on its node.
    gone = killed or [report for report in reports if report.state == "running"]
    if gone:
        how = f"was killed by signal {gone[0].signal}" if gone[0].signal else "was killed"
        which = f"rank {gone[0].rank} of {workers}"
        raise TrainingError(f"{which} {how} (for want of memory?): train with fewer processes or a smaller batch")
    raise TrainingError(f"the workers of {request.folder} ended without a report: see the lines above")


def _cause(first: WorkerReport, request: TrainingRequest) -> FoundryError:
    if isinstance(kind := getattr(errors, first.error, None), type) and issubclass(kind, FoundryError):
        return TrainingError(first.message) if kind.__init__ is not FoundryError.__init__ else kind(first.message)
    log.error("rank %d:\n%s", first.rank, first.trace)
    what = first.message.splitlines()[0]
    return TrainingError(f"rank {first.rank} failed: {what} (its traceback is in {request.folder / 'workers'})")


def _is_broken_connection(report: WorkerReport) -> bool:
    return report.error in {"DistBackendError", "DistNetworkError", "DistStoreError"} or any(
        sign in report.message for sign in ("gloo", "Connection closed by peer", "Connection reset", "NCCL")
    )
