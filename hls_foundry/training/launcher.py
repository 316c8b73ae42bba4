"""Starts a training: in this process, in several by `accelerate launch`, or on all nodes of a Slurm job, and says what became of it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import hls_foundry
from hls_foundry.errors import TrainingError
from hls_foundry.training.agent import Machine, agent_command, write_settings
from hls_foundry.training.atomic import write_atomically
from hls_foundry.training.cluster import Allocation, current_start, first_address, free_port, srun_command, srun_environment
from hls_foundry.training.interruption import LAUNCHER_PID, STOP_SIGNALS
from hls_foundry.training.reports import WorkerReport, outcome
from hls_foundry.training.request import TrainingRequest, TrainingResult

log = logging.getLogger(__name__)


def launch(request: TrainingRequest, *, progress: bool = True) -> TrainingResult:
    """Run the training that `request` describes and return what rank 0 left in result.json.

    `training.processes` processes a node share it: on this machine, or, called on the first node of a Slurm job of several, on all
    of the job's nodes. Raises what `train` raises, wherever it happened: FoundryErrors with one line, Preempted after a signal.
    """
    allocation = Allocation.of(os.environ)
    processes = request.training.processes
    if allocation is None and processes == 1:
        from hls_foundry.training.loop import train

        return train(request, progress=progress)
    workers = processes * (allocation.nodes if allocation else 1)
    if request.training.batch_size % (workers * request.training.accumulation):
        shares = f"nodes × processes × accumulation ({workers // processes} × {processes} × {request.training.accumulation})"
        raise TrainingError(f"training.batch_size {request.training.batch_size} is global: it must be a multiple of {shares}")
    request.folder.mkdir(parents=True, exist_ok=True)
    reports = request.folder / "workers"
    for old in (*reports.glob("rank-*.json"), request.folder / "result.json"):
        old.unlink(missing_ok=True)
    path = request.folder / "request.json"
    request.save(path)
    write_settings(path)
    received = _run_across(allocation, path, processes) if allocation else _run_here(path, processes)
    return outcome(request, [WorkerReport.load(file) for file in sorted(reports.glob("rank-*.json"))], received, workers)


def _run_here(request_file: Path, processes: int) -> int:
    threads = max(1, torch.get_num_threads() // processes)
    return _run(agent_command(request_file, processes, Machine()), launch_environment(os.environ, threads), lambda number: number)


def _run_across(allocation: Allocation, request_file: Path, processes: int) -> int:
    address = first_address(allocation.first_node)
    port = free_port(allocation.preferred_port)
    log.info("fine-tuning on %d nodes, processes on each: %d, which meet at %s:%d", allocation.nodes, processes, address, port)
    environment = launch_environment(srun_environment(os.environ), max(1, allocation.cpus // processes))
    write_atomically(current_start(request_file), allocation.start.encode())  # for the nodes
    # srun answers SIGTERM and SIGINT by killing its tasks; SIGUSR1 it hands to every one of them.
    command = srun_command(allocation.nodes, request_file.absolute(), processes, (address, port))
    return _run(command, environment, lambda number: signal.SIGUSR1)


def launch_environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    """`inherited` and what the workers need besides; `threads` a worker unless OMP_NUM_THREADS is set."""
    source = str(Path(hls_foundry.__file__).resolve().parents[1])
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a rank that dies ends the others, not their patience
        **inherited,
        "PYTHONPATH": os.pathsep.join(part for part in (source, inherited.get("PYTHONPATH", "")) if part),
        "OMP_NUM_THREADS": inherited.get("OMP_NUM_THREADS") or str(threads),
        LAUNCHER_PID: str(os.getpid()),
    }


def _run(command: list[str], environment: dict[str, str], translate: Callable[[int], int]) -> int:
    """Run to the end, handing on the first signal to stop (as `translate` says); returns its number, or 0. Nothing is left behind."""
    received = 0
    # A session of its own: a terminal's Ctrl-C or a signal to our group then arrives once, by way of `forward`.
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = number
            process.send_signal(translate(number))

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
