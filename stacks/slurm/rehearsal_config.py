"""What a rehearsal cluster is made of, and the Slurm configuration that says so: pure functions from a shape to text."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from hls_foundry.errors import SlurmError

Network = Literal["none", "hosts", "isolated"]
MOST = {"nodes": 64, "cpus": 1024, "memory_mb": 4_000_000, "gpus": 64}
LEAST = {"nodes": 1, "cpus": 1, "memory_mb": 128, "gpus": 0}
SHARE_OF_MEMORY = 0.75
NODES, CPUS = 2, 2


@dataclass(frozen=True)
class Shape:
    """Size of a cluster. CPUs, memory (MB) and GPUs are per node; they may exceed the machine's, Slurm only counts them.

    `network`: "none": nodes share the machine's host name and network; "hosts": each has its own host name and /etc/hosts (n1, n2, …
    resolve); "isolated": its own network namespace as well, without a route to the outside. `settings` replaces lines of slurm.conf.
    Raises SlurmError where a number is out of range.
    """

    nodes: int
    cpus: int
    memory_mb: int
    gpus: int = 0
    network: Network = "hosts"
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not LEAST[name] <= (value := getattr(self, name)) <= most:
                raise SlurmError(f"the rehearsal cluster's {name} cannot be {value}: choose {LEAST[name]} to {most}")
        if self.network not in get_args(Network):
            raise SlurmError(f"the rehearsal cluster's network cannot be '{self.network}': choose {', '.join(get_args(Network))}")

    @property
    def names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.nodes + 1)]

    def line(self) -> str:
        """The shape in a few words."""
        gpus = f", {self.gpus} GPUs (pretended)" if self.gpus else ""
        return f"{self.nodes} nodes with {self.cpus} CPUs, {self.memory_mb} MB{gpus} each, network {self.network}"


def default_shape(**given: object) -> Shape:
    """Two nodes that share this machine: each with all its cores, at least two, and its part of 75 % of the memory.

    `given` are fields of Shape; those that are None are left to the default. Raises SlurmError.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    nodes = chosen.setdefault("nodes", NODES)
    chosen.setdefault("cpus", max(CPUS, os.cpu_count() or 1))
    if "memory_mb" not in chosen:
        nodes = max(1, nodes) if isinstance(nodes, int) else NODES
        chosen["memory_mb"] = max(1024, int(machine_memory_mb() * SHARE_OF_MEMORY / nodes))
    chosen.setdefault("network", "hosts" if os.geteuid() == 0 else "none")
    return Shape(**chosen)  # type: ignore[arg-type]


def machine_memory_mb() -> int:
    """This machine's memory in MB, or what a container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()) // 2**20)
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return total


@dataclass(frozen=True)
class Layout:
    """Where things are: the cluster's private folder, its addresses and its ports."""

    folder: PurePosixPath
    host: str  # this machine's short name
    user: str
    controller: str  # address
    port: int
    addresses: Mapping[str, str]  # node name to address
    ports: Mapping[str, int]  # node name to slurmd's port

    @property
    def slurm_conf(self) -> PurePosixPath:
        return self.folder / "etc" / "slurm.conf"


def slurm_conf(shape: Shape, layout: Layout) -> str:
    """slurm.conf: real in all but size, with short times so that a failure is rehearsed in seconds."""
    folder = layout.folder
    settings = {
        "ClusterName": "rehearsal",
        "SlurmctldHost": f"{layout.host}({layout.controller})",
        "SlurmctldPort": str(layout.port),
        "SlurmUser": layout.user,
        "SlurmdUser": layout.user,
        "AuthType": "auth/munge",
        # A requeued job waits for its old credential to expire before it starts again: 120 s unless told.
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=10",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldPidFile": f"{folder}/run/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/run/%n.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/%n.log",
        "MailProg": "/bin/true",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "5",
        "JobAcctGatherParams": "OverMemoryKill",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=5,bf_interval=5,batch_sched_delay=0",
        "SlurmdParameters": "config_overrides",  # believe the sizes below, not the hardware
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/filetxt",
        "JobCompLoc": f"{folder}/log/jobcomp.txt",
        "GresTypes": "gpu",
        "ReturnToService": "2",
        "JobRequeue": "1",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",  # a preempted job gets its --signal first
        "SlurmdTimeout": "10",
        "KillWait": "10",
        "OverTimeLimit": "0",
        "MinJobAge": "3600",  # scontrol knows a job for an hour after its end
        "DefMemPerCPU": str(max(1, shape.memory_mb // shape.cpus)),
    }
    if layout.controller.startswith("127."):
        # Listen on the loopback only. Slurm takes the address that the host's name has, so the controller's must be that one.
        # Not so with names: an srun in a job would listen at its node's address, while its peers answer to 127.0.0.1, where it calls from.
        settings["CommunicationParameters"] = "NoCtldInAddrAny" if shape.network == "hosts" else "NoCtldInAddrAny,NoInAddrAny"
    lines = [f"{name}={value}" for name, value in {**settings, **shape.settings}.items()]
    gres = f" Gres=gpu:rehearsal:{shape.gpus}" if shape.gpus else ""
    lines.append(f"NodeName=DEFAULT CPUs={shape.cpus} RealMemory={shape.memory_mb}{gres} State=UNKNOWN")
    lines += [f"NodeName={n} NodeHostname={layout.host} NodeAddr={layout.addresses[n]} Port={layout.ports[n]}" for n in shape.names]
    lines += [
        "PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP",
        "PartitionName=batch Default=YES PriorityTier=1 GraceTime=15",
        "PartitionName=urgent PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(gpus: int, device: str) -> str:
    """gres.conf for `gpus` pretended GPUs; `device` is a path that a number is appended to, one character device a GPU."""
    if not gpus:
        return ""
    return f"Name=gpu Type=rehearsal File={device}{'0' if gpus == 1 else f'[0-{gpus - 1}]'}\n"


def local_address(host: str) -> str:
    """The address that this machine's name has, "127.0.0.1" where it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return "127.0.0.1"


def hosts_file(machine: str, addresses: Mapping[str, str]) -> str:
    """/etc/hosts as the nodes see it: `machine`'s own and the nodes' names."""
    return machine.rstrip("\n") + "\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
