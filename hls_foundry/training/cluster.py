"""The Slurm job that a training finds itself in: its nodes, where their workers meet, and the `srun` that starts one agent on each.

What a site sets reaches the workers: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME where a node's name does not lead to the network that
the nodes share, NCCL_*, OMP_NUM_THREADS.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import TrainingError

PORTS = range(20000, 30000)
"""Below the ports that Linux hands out by itself (32768 up)."""

SRUN_OPTIONS, TASK_COMMAND = "HLS_SRUN_OPTIONS", "HLS_TASK_COMMAND"
"""Environment variables, in words as a shell reads them: further options of srun, and what starts its tasks in a step's container."""

OPTIONS_OF_THE_JOB = frozenset(
    f"SLURM_{name}"
    for name in (
        "EXPORT_ENV", "CPUS_PER_TASK", "NTASKS", "NPROCS", "NTASKS_PER_NODE", "NTASKS_PER_CORE", "NTASKS_PER_SOCKET", "NTASKS_PER_GPU",
        "GPUS_PER_TASK", "TRES_PER_TASK", "CPU_BIND", "CPU_BIND_TYPE", "CPU_BIND_LIST", "CPU_BIND_VERBOSE", "DISTRIBUTION", "HOSTFILE",
        "HINT", "THREADS_PER_CORE", "EXACT", "WAIT",
    )
) | {"SRUN_CPUS_PER_TASK"}  # fmt: skip
"""What srun would read as options, and what shares a node out among tasks: the one task a node takes all that the job has there."""


@dataclass(frozen=True)
class Allocation:
    """A Slurm job of several nodes, seen from its batch host, which is the first of them."""

    job: int
    restarts: int
    nodes: int
    first_node: str
    cpus: int  # that a node's processes share

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Allocation | None:
        """The allocation that `environment` describes; None outside a job, in a job of one node, and in a step of several tasks.

        Raises TrainingError where there is no srun to reach the other nodes with.
        """
        nodes = int(environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
        if "SLURM_JOB_ID" not in environment or nodes == 1 or int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
            return None
        if shutil.which("srun", path=environment.get("PATH")) is None:
            raise TrainingError(f"the job has {nodes} nodes, but there is no srun on the PATH: load Slurm's module, or ask for one node")
        on_node = int(environment.get("SLURM_CPUS_ON_NODE") or 1)
        per_task = int(environment.get("SLURM_CPUS_PER_TASK") or 0)
        tasks = int(re.match(r"\d*", environment.get("SLURM_TASKS_PER_NODE", "")).group() or 1)  # type: ignore[union-attr]
        return cls(
            job=int(environment["SLURM_JOB_ID"]),
            restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
            nodes=nodes,
            first_node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
            # With --hint=nomultithread CPUS_ON_NODE still counts every hardware thread; what was asked for a task does not.
            cpus=min(on_node, per_task * tasks) if per_task else on_node,
        )

    @property
    def start(self) -> str:
        """Names this start of the job among all others."""
        return start_of(self.job, self.restarts)

    @property
    def preferred_port(self) -> int:
        """Differs between jobs that share a host, and between the restarts of one (whose old port may still be closing)."""
        return PORTS[(self.job * 8 + self.restarts) % len(PORTS)]


def start_of(job: int | str, restarts: int | str) -> str:
    """`JOB.RESTARTS`: one start of one job, as the file that `current_start` names has it."""
    return f"{job}.{restarts}"


def current_start(request_file: Path) -> Path:
    """The file beside a training's request that says which start of which job it is in the hands of."""
    return request_file.with_name("start")


def first_address(node: str, run: Callable[[list[str]], str] | None = None) -> str:
    """What the other nodes reach `node` by: its name where that resolves, else the address that Slurm itself uses.

    Raises TrainingError where neither is known. `run` gives a command's output.
    """
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        said = (run or _output)(["scontrol", "show", "node", node, "--oneliner"])
    except (OSError, subprocess.SubprocessError) as error:
        raise TrainingError(f"the first node, {node}, has no address by name, and scontrol does not know it ({error})") from None
    found = re.search(r"\bNodeAddr=(\S+)", said)
    if not found:
        raise TrainingError(f"the first node, {node}, has no address: neither its name resolves nor does scontrol give a NodeAddr")
    return found.group(1)


def free_port(preferred: int) -> int:
    """`preferred`, or the next port of PORTS that nothing on this machine listens on. Raises TrainingError."""
    start = PORTS.index(preferred)
    for offset in range(len(PORTS)):
        port = PORTS[(start + offset) % len(PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise TrainingError(f"no free port from {PORTS.start} to {PORTS.stop - 1} on the first node")


def srun_command(
    nodes: int, request_file: Path, processes: int, meeting: tuple[str, int], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The command that runs hls_foundry.training.node once on each of the job's nodes; any of them that fails ends all.

    `meeting`: address and port on the first node. `environment` may say how tasks get into a container.
    """
    options, start = (shlex.split(environment.get(name, "")) for name in (SRUN_OPTIONS, TASK_COMMAND))
    address, port = meeting
    # Not --cpus-per-task, with which the task would see no more than that, nor a binding: workers share what the job has on the node.
    return [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--export=ALL", "--cpu-bind=none",
        "--input=none", "--label", "--job-name=fine-tune", *options, *start, sys.executable, "-m", "hls_foundry.training.node",
        f"--processes={processes}", f"--address={address}", f"--port={port}", str(request_file),
    ]  # fmt: skip


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without the job's own options, which srun would take for options of its step."""
    return {name: value for name, value in environment.items() if name not in OPTIONS_OF_THE_JOB}


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
