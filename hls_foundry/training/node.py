"""The agent of one node: `srun` starts it, it starts `accelerate launch` for the workers there, hands on signals and counts their use.

Where the node's Slurm daemon dies, agent and workers live on, while the job starts again elsewhere: they see that it did, and end.

Exit codes: 0 where the workers are done, or stopped by a signal with everything saved (srun would kill the other nodes' workers for
any other code); else 1, so that it does.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from hls_foundry.training.agent import Machine, agent_command
from hls_foundry.training.cluster import current_start, start_of
from hls_foundry.training.interruption import LAUNCHER_PID, PREEMPTED, STOP_SIGNALS
from hls_foundry.training.usage import UsageMeter

LOOK_S = 5.0


def main(arguments: list[str]) -> int:
    """Run this node's agent until the training ends. Returns the exit code: 0 where it is done or was preempted, else 1."""
    parser = argparse.ArgumentParser(prog="python -m hls_foundry.training.node", description=__doc__)
    parser.add_argument("request", type=Path, help="request.json of the training")
    parser.add_argument("--processes", type=int, required=True, help="workers on this node")
    parser.add_argument("--address", required=True, help="of the first node")
    parser.add_argument("--port", type=int, required=True, help="on the first node, where the workers meet")
    options = parser.parse_args(arguments)
    machine = Machine(int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_STEP_NUM_NODES"]), options.address, options.port)
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with UsageMeter(usage_file(os.environ, host), host):
        own = start_of(os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0"))
        code = run_agent(agent_command(options.request, options.processes, machine), lambda: superseded(options.request, own))
    return 0 if code in (0, PREEMPTED) else 1


def usage_file(environment: Mapping[str, str], host: str) -> Path | None:
    """One for each node (several may share a host), each restart of the job and each step in it; None where nobody asked."""
    folder = environment.get("HLS_USAGE_FOLDER")
    if not folder:
        return None
    run = "-".join(environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return Path(folder) / f"{host}.{run}.json"


def superseded(request_file: Path, own: str) -> str:
    """The start that has the training in hand by now; empty where that is `own`, or cannot be read."""
    try:
        start = current_start(request_file).read_text(encoding="utf-8")
    except OSError:
        return ""
    return "" if start == own else start


def run_agent(command: list[str], look: Callable[[], str]) -> int:
    """Run to the end, handing on the first signal to stop; returns the exit code.

    Where `look`, asked every few seconds, names another start of the job, ends it with all its children.
    """
    handed_on = False
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal handed_on
        if process is None:
            sys.exit(1)
        if not handed_on:
            handed_on = True
            process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    # This agent is what the workers here look out for: the launcher is on another node.
    process = subprocess.Popen(command, env={**os.environ, LAUNCHER_PID: str(os.getpid())})
    while True:
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            if start := look():
                print(f"start {start} of the job goes on with the training: the workers here give way", flush=True)
                for one in (*psutil.Process(process.pid).children(recursive=True), process):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
