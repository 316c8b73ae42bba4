"""Refuses what a cluster cannot run before anything is submitted: Slurm itself would let some of it wait for ever."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import ConfigError
from stacks.definition import nearest
from stacks.slurm.client import Slurm
from stacks.slurm.records import Association, Node, Partition
from stacks.slurm.script import Resources
from stacks.slurm.settings import SlurmSettings
from stacks.slurm.values import canonical_time

LEAST_FREE_MIB = 1024
SCRATCH_BYTES = 2**20
GONE = ("down", "drain", "fail", "err", "unk", "inval", "future", "power_down", "powered_down")
"""Beginnings of the states of nodes on which nothing will start before somebody mends them."""

_SIMPLE = re.compile(r"[A-Za-z0-9_.:=@+-]+")


@dataclass(frozen=True)
class Request:
    """What one step's job asks for."""

    step: str
    settings: SlurmSettings
    resources: Resources


@dataclass(frozen=True)
class _Each:
    """What a job asks of each of its nodes."""

    cpus: int
    memory_mib: int
    gres: dict[str, int]  # "gpu" or "gpu:a100" → how many


def check_requests(slurm: Slurm, requests: Mapping[str, Request]) -> None:
    """Compare what all steps ask for with what the cluster has, in two or three calls of Slurm's commands.

    Raises ConfigError, one line with the step, for a partition that does not exist or is down; more nodes, CPUs, memory or GPUs a node
    than its nodes have that are not down; a feature or generic resource that none has; a time limit over the partition's; an account or
    QOS that the partition or, where there is accounting, the user does not have. Raises SlurmError where Slurm does not answer.
    """
    partitions = {partition.name: partition for partition in slurm.partitions()}
    nodes = slurm.nodes()
    named = any(request.settings.account or request.settings.qos for request in requests.values())
    associations = slurm.accounts() if named else None
    for request in requests.values():
        problem = _account_problem(request.settings, associations or []) or _problem(request, partitions, nodes)
        if problem:
            raise ConfigError(f"step '{request.step}' {problem}")


def check_folder(folder: Path, *, least_mib: int = LEAST_FREE_MIB) -> None:
    """Whether `folder`, which need not exist, can be written and has room; leaves nothing there. Raises ConfigError, one line."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as scratch:
            scratch.write(os.urandom(SCRATCH_BYTES))  # a quota shows only when one writes
            scratch.flush()
            os.fsync(scratch.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free space or quota there" if full else "check its permissions"
        words = error.strerror or type(error).__name__
        raise ConfigError(f"run folder {folder} cannot be written ({words}): {advice}, or set HLS_FOUNDRY_HOME elsewhere") from None
    free = shutil.disk_usage(there).free // 2**20
    if free < least_mib:
        raise ConfigError(
            f"run folder {folder} has {free} MiB free, and {least_mib} are needed: free some, or set HLS_FOUNDRY_HOME elsewhere"
        )


# ---- one step ----------------------------------------------------------------------------------------------------------------------


def _problem(request: Request, partitions: Mapping[str, Partition], nodes: list[Node]) -> str | None:
    """Why no partition that the step names can run it. With several names Slurm takes any that can."""
    if request.settings.partition is None:
        default = next((partition for partition in partitions.values() if partition.default), None)
        if default is None:
            return f"names no partition, and this cluster has no default one: set slurm.partition to one of {_list(partitions)}"
        return _partition_problem(request, default, nodes)
    problems = []
    for name in request.settings.partition.split(","):
        if name not in partitions:
            return (
                f"asks for partition '{name}', which this cluster does not have: {nearest(name, list(partitions))} "
                f"(its partitions: {_list(partitions)})"
            )
        problem = _partition_problem(request, partitions[name], nodes)
        if problem is None:
            return None
        problems.append(problem)
    return problems[0]


def _partition_problem(request: Request, partition: Partition, nodes: list[Node]) -> str | None:
    settings, where = request.settings, f"partition '{partition.name}'"
    if not partition.up:
        return f"asks for {where}, which is down: choose another, or wait until scontrol show partition says UP"
    if settings.time_s and partition.max_time_s is not None and math.ceil(settings.time_s / 60) * 60 > partition.max_time_s:
        return f"asks for {settings.time}, but {where} allows {canonical_time(partition.max_time_s)}: lower slurm.time"
    for key, allowed in (("account", partition.accounts), ("qos", partition.qos)):
        value = getattr(settings, key)
        if value and allowed is not None and value not in allowed:
            return f"asks for {key} '{value}', which {where} does not take: {nearest(value, list(allowed))}"
    if partition.max_nodes is not None and settings.nodes > partition.max_nodes:
        return f"asks for {settings.nodes} nodes, but {where} gives a job {partition.max_nodes} at most: lower slurm.nodes"
    members = [node for node in nodes if partition.name in node.partitions]
    return _nodes_problem(request, where, members)


def _nodes_problem(request: Request, where: str, members: list[Node]) -> str | None:
    """Narrow the partition's nodes down to those that fit; the first criterion after which too few are left is the problem."""
    wanted, each = request.settings.nodes, _each(request)
    if wanted > len(members):
        return f"asks for {wanted} nodes, but {where} has {len(members)}: lower slurm.nodes"
    left = [node for node in members if not node.state.startswith(GONE)]
    if wanted > len(left):
        gone = ", ".join(f"{node.name} {node.state}" for node in members if node not in left)
        return f"asks for {wanted} nodes, but of those of {where} {len(left)} can be used ({gone[:120]}): wait, or lower slurm.nodes"
    if problem := _feature_problem(request.settings.constraint, where, left):
        return problem
    left = [node for node in left if _has_features(node, request.settings.constraint)]
    if wanted > len(left):
        return f"asks for {wanted} nodes with '{request.settings.constraint}', but {where} has {len(left)}: change slurm.constraint"
    most = max(node.cpus for node in left)
    left = [node for node in left if node.cpus >= each.cpus]
    if wanted > len(left):
        return f"asks for {each.cpus} CPUs a node, but {where} has {len(left)} such nodes ({most} CPUs at most): lower cpu_count"
    size = max(node.memory_bytes for node in left) // 2**20
    left = [node for node in left if node.memory_bytes // 2**20 >= each.memory_mib]
    if wanted > len(left):
        return f"asks for {each.memory_mib} MiB a node, but {where} has {len(left)} such nodes ({size} MiB at most): lower memory"
    for name, count in each.gres.items():
        offered = sorted({node.gres for node in left if node.gres}) or ["none"]
        left = [node for node in left if _gres(node.gres).get(name, 0) >= count]
        if wanted > len(left):
            return (
                f"asks for {count} {name} a node, but {where} has {len(left)} such nodes (its nodes have {', '.join(offered)[:120]}): "
                "lower gpu_count or slurm.gres, or choose another partition"
            )
    return None


def _each(request: Request) -> _Each:
    """What the job's script asks for, node by node (stacks/slurm/script.py says it to Slurm)."""
    settings, resources = request.settings, request.resources
    tasks = settings.tasks_per_node or 1
    cpus = settings.cpus_per_task or (1 if resources.cpus is None else max(1, math.ceil(resources.cpus / tasks)))
    memory = resources.memory_mib if settings.memory_mib is None else settings.memory_mib
    gpus = resources.gpus if settings.gpus_per_node is None else settings.gpus_per_node
    gres = _gres(settings.gres or "")
    if gpus and "gpu" not in gres:
        gres["gpu"] = gpus
    # A kind with a type counts for the kind as well; what was asked for by type need not be checked a second time.
    asked = {name: count for name, count in gres.items() if not any(other.startswith(f"{name}:") for other in gres)}
    return _Each(tasks * cpus, memory or 0, asked)


def _gres(text: str) -> dict[str, int]:
    """ "gpu:a100:4(S:0-1),shard:8" as {"gpu:a100": 4, "gpu": 4, "shard": 8}."""
    counts: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = entry.removeprefix("gres/").removeprefix("gres:").split(":")
        if not name:
            continue
        number = re.fullmatch(r"(\d+)([KMGkmg]?)", rest[-1]) if rest else None
        count = int(number[1]) * 1024 ** " kmg".index(number[2].lower() or " ") if number else 1
        kind = rest[:-1] if number else rest
        counts[name] = counts.get(name, 0) + count
        if kind:
            typed = f"{name}:{kind[0]}"
            counts[typed] = counts.get(typed, 0) + count
    return counts


def _feature_problem(constraint: str | None, where: str, nodes: list[Node]) -> str | None:
    known = {feature for node in nodes for feature in node.features}
    for feature in _features(constraint):
        if feature not in known:
            offered = f"{nearest(feature, list(known))} (features: {_list(known)})" if known else "its nodes have no features"
            return f"asks for the feature '{feature}', which no node of {where} has: {offered}"
    return None


def _features(constraint: str | None) -> list[str]:
    """The features that a constraint names, without its counts (*2)."""
    if not constraint or "|" in constraint:
        return []  # any one of them may do; sbatch looks at these
    return _SIMPLE.findall(re.sub(r"\*\d+", "", constraint))


def _has_features(node: Node, constraint: str | None) -> bool:
    """Whether a constraint of features joined by & or | leaves `node` in. Counts and groups are Slurm's to judge."""
    if not constraint or not re.fullmatch(rf"{_SIMPLE.pattern}([&|]{_SIMPLE.pattern})*", constraint):
        return True
    return any(set(part.split("&")) <= set(node.features) for part in constraint.split("|"))


def _account_problem(settings: SlurmSettings, associations: list[Association]) -> str | None:
    """Whether accounting knows the user under this account and QOS. Without associations Slurm does not look, and neither do we."""
    if not associations:
        return None
    accounts = {association.account for association in associations}
    if settings.account and settings.account not in accounts:
        return (
            f"charges account '{settings.account}', which is not yours: {nearest(settings.account, list(accounts))} "
            f"(your accounts: {_list(accounts)})"
        )
    usable = [one for one in associations if settings.account in (None, one.account)]
    qos = {name for association in usable for name in association.qos}
    if settings.qos and qos and settings.qos not in qos:
        return f"asks for QOS '{settings.qos}', which you do not have: {nearest(settings.qos, list(qos))} (yours: {_list(qos)})"
    return None


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
