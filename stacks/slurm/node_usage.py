"""What a step used on all its nodes: the supervisor's own measurements with those that node agents leave in `usage/`.

Standard library only. Tasks of srun are children of Slurm's daemons, so the supervisor cannot see them, not even on its own node.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path


def read_usage(folder: Path, cpu_seconds: float, max_rss_bytes: int, node: str) -> tuple[float, int]:
    """CPU seconds on all nodes and the largest memory on any one of them, in bytes.

    `folder` holds HOST.json {"host", "cpu_seconds", "max_rss_bytes", …}; the figures given are those of this node, called `node` by
    Slurm. A file that cannot be read counts nothing: its agent was killed while writing.
    """
    here = {node, socket.gethostname(), socket.gethostname().split(".")[0]}
    memory = {"": max_rss_bytes}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            host, cpu, rss = str(content["host"]), float(content["cpu_seconds"]), int(content["max_rss_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        cpu_seconds += cpu
        key = "" if host in here or host.split(".")[0] in here else host
        memory[key] = memory.get(key, 0) + rss
    return cpu_seconds, max(memory.values())


def allocated_cpus(environment: Mapping[str, str]) -> int:
    """CPUs of the job on all nodes, from SLURM_JOB_CPUS_PER_NODE such as "72(x2),36"; 1 without it."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return sum(int(cpus) * int(times or 1) for cpus, times in found) or 1
