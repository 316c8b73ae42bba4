"""`accelerate launch` on one node, without its stack traces: what went wrong is in the workers' own reports, which the launcher reads."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from hls_foundry.collection import collect_seldom
from hls_foundry.training.atomic import write_atomically
from hls_foundry.training.interruption import PREEMPTED, STOP_SIGNALS


@dataclass(frozen=True)
class Machine:
    """This machine's `number` of `count`; the workers of several meet at `address`:`port` on number 0."""

    number: int = 0
    count: int = 1
    address: str = ""
    port: int = 0  # 0, alone: Accelerate takes a free one


def agent_command(request_file: Path, processes: int, machine: Machine) -> list[str]:
    """The command that starts the `processes` workers of one machine; `write_settings` comes before it."""
    # --multi_gpu is how Accelerate names the way through torch's agent; with ACCELERATE_USE_CPU the workers meet over gloo. Its own
    # way for CPUs asks for mpirun.
    meeting = ["--main_process_port", str(machine.port)]
    if machine.count > 1:
        meeting += ["--main_process_ip", machine.address, "--machine_rank", str(machine.number)]
        meeting += ["--rdzv_backend", "static", "--same_network"]
    return [
        sys.executable, "-m", "hls_foundry.training.agent", "--config_file", str(_settings(request_file)), "--multi_gpu",
        "--num_machines", str(machine.count), "--num_processes", str(machine.count * processes), *meeting, "--mixed_precision", "no",
        "--dynamo_backend", "no", "--module", "hls_foundry.training", str(request_file),
    ]  # fmt: skip


def write_settings(request_file: Path) -> None:
    """Accelerate's configuration beside the request: it keeps one in the user's home from having a say."""
    content = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no"}
    write_atomically(_settings(request_file), json.dumps(content).encode())


def _settings(request_file: Path) -> Path:
    return request_file.with_name("accelerate.json")


class SignalRelay:
    """Hands the first signal to stop to the workers, which save; this process then ends after them. Later ones change nothing.

    A thread does it, since torch's agent may be waiting in C++ for the other nodes, where Python runs no handler. Without workers
    there is nothing to save, and the process ends.
    """

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._relay, daemon=True, name="signals").start()

    def _relay(self) -> None:
        while (number := os.read(self._read, 1)[0]) not in STOP_SIGNALS:
            continue
        workers = psutil.Process().children()
        if not workers:
            os._exit(1)
        for worker in workers:
            worker.send_signal(number)


def main() -> int:
    """Run Accelerate's command line on `sys.argv`: 0 where all workers ended well, 85 where they saved and stopped, else 1."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch: its warnings on lost connections are stack traces
    collect_seldom()
    # Late: Accelerate takes seconds to import, and those who only want the command line should not wait for it.
    import torch
    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from hls_foundry.training.reports import report_killed

    # Nor does it need telling that the first node left the meeting a moment before the others did.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # torch's own handling of signals would end this process, and orphan the workers, at the second one.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    if not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    SignalRelay()
    try:
        accelerate_launch()
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                report_killed(Path(sys.argv[-1]).parent / "workers", rank, failure.pid, -failure.exitcode, failure.timestamp)
        return PREEMPTED if all(failure.exitcode == PREEMPTED for failure in error.failures.values()) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
