"""Starts a training: in this process, or in several on this machine by `accelerate launch`, and says what became of them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import hls_foundry
from hls_foundry import errors
from hls_foundry.errors import FoundryError, Preempted, TrainingError
from hls_foundry.training.interruption import LAUNCHER_PID, STOP_SIGNALS
from hls_foundry.training.request import TrainingRequest, TrainingResult, write_atomically

log = logging.getLogger(__name__)

SAVING_S = 600
"""How long workers may take to finish a step and save before torch's agent kills them."""


@dataclass(frozen=True)
class WorkerReport:
    """What one worker process says of itself in `workers/rank-N.json`."""

    rank: int
    pid: int
    state: str = "running"  # running, done, preempted, failed
    time: float = 0.0
    error: str = ""  # class of the exception
    message: str = ""
    trace: str = ""
    signal: int = 0

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"rank-{self.rank}.json", json.dumps(asdict(self)).encode())

    @classmethod
    def of_error(cls, rank: int, error: BaseException) -> WorkerReport:
        state = "preempted" if isinstance(error, Preempted) else "failed"
        number = error.signal_number if isinstance(error, Preempted) else 0
        message = str(error) if isinstance(error, FoundryError | Preempted) else f"{type(error).__name__}: {error}"
        return cls(rank, os.getpid(), state, time.time(), type(error).__name__, message, "".join(traceback.format_exception(error)), number)


def launch(request: TrainingRequest, *, progress: bool = True) -> TrainingResult:
    """Run the training that `request` describes with `training.processes` processes and return what rank 0 left in result.json.

    Raises what `train` raises, whichever process it happened in: FoundryErrors with one line, Preempted after a signal.
    """
    if request.training.processes == 1:
        from hls_foundry.training.loop import train

        return train(request, progress=progress)
    request.folder.mkdir(parents=True, exist_ok=True)
    reports = request.folder / "workers"
    for old in (*reports.glob("rank-*.json"), request.folder / "result.json"):
        old.unlink(missing_ok=True)
    path = request.folder / "request.json"
    request.save(path)
    received = _run(launch_command(path, request), launch_environment(request.training.processes))
    return _outcome(request, [WorkerReport(**json.loads(file.read_bytes())) for file in sorted(reports.glob("rank-*.json"))], received)


def launch_command(request_file: Path, request: TrainingRequest) -> list[str]:
    """The command that starts the workers of one machine. Port 0: Accelerate takes a free one for the rendezvous."""
    # --multi_gpu is how Accelerate names the way through torch's agent; with ACCELERATE_USE_CPU the workers meet over gloo. Its own
    # way for CPUs asks for mpirun. The configuration file keeps one in the user's home from having a say.
    settings = request_file.with_name("accelerate.json")
    content = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no"}
    write_atomically(settings, json.dumps(content).encode())
    return [
        sys.executable, "-m", "hls_foundry.training.agent", "--config_file", str(settings), "--multi_gpu", "--num_machines", "1",
        "--num_processes", str(request.training.processes), "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--module", "hls_foundry.training", str(request_file),
    ]  # fmt: skip


def launch_environment(processes: int) -> dict[str, str]:
    """This process's environment, and what the workers need besides."""
    source = str(Path(hls_foundry.__file__).resolve().parents[1])
    added = {
        "PYTHONPATH": os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // processes)),
        LAUNCHER_PID: str(os.getpid()),
        # torch's agent forwards these to the workers (SIGUSR1 would end it by default), then waits for them to save.
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "PET_SHUTDOWN_TIMEOUT": str(SAVING_S),
    }
    if not torch.cuda.is_available():
        added["ACCELERATE_USE_CPU"] = "true"
    return {**os.environ, **added}


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run to the end, handing on the first signal to stop; returns its number, or 0. Nothing is left behind."""
    received = 0
    # A session of its own: a terminal's Ctrl-C or a signal to our group then arrives once, by way of `forward`.
    process = subprocess.Popen(command, env=environment, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = number
            process.send_signal(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    return received


def _outcome(request: TrainingRequest, reports: list[WorkerReport], received: int) -> TrainingResult:
    failed = sorted((report for report in reports if report.state == "failed"), key=lambda report: report.time)
    # What a rank reports after another one died is the broken connection; the cause is the dead one's.
    own = [report for report in failed if not _is_broken_connection(report)]
    preempted = [report for report in reports if report.state == "preempted"]
    vanished = [report.rank for report in reports if report.state == "running"]
    if own:
        first = own[0]
        if isinstance(kind := getattr(errors, first.error, None), type) and issubclass(kind, FoundryError):
            raise TrainingError(first.message) if kind.__init__ is not FoundryError.__init__ else kind(first.message)
        log.error("rank %d:\n%s", first.rank, first.trace)
        raise TrainingError(f"rank {first.rank} failed: {first.message.splitlines()[0]} (its traceback is in {request.folder / 'workers'})")
    if preempted:
        raise Preempted(preempted[0].message, preempted[0].signal)
    if (request.folder / "result.json").is_file():
        return TrainingResult.load(request.folder)
    if received:
        raise Preempted(f"stopped by signal {received} before the first step", received)
    if vanished:
        which = f"rank {vanished[0]} of {request.training.processes}"
        raise TrainingError(f"{which} was killed (for want of memory?): train with fewer processes or a smaller batch")
    raise TrainingError(f"the workers of {request.folder} ended without a report: see the lines above")


def _is_broken_connection(report: WorkerReport) -> bool:
    return report.error in {"DistBackendError", "DistNetworkError", "DistStoreError"} or any(
        sign in report.message for sign in ("gloo", "Connection closed by peer", "Connection reset", "NCCL")
    )
