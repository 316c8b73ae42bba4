"""What Slurm's commands print, read into jobs, nodes and partitions: pure functions from text to records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from stacks.slurm.states import JobState

FIELD, RECORD = "\x1f", "\x1e"
"""ASCII's own separators: no name, comment or reason holds them."""

_QUEUE = {  # squeue -O: name and width (longer values are cut)
    "JobID": 20,
    "Name": 256,
    "State": 24,
    "Reason": 256,
    "NumNodes": 16,
    "NodeList": 2048,
    "SubmitTime": 20,
    "EligibleTime": 20,
    "StartTime": 20,
    "EndTime": 20,
    "TimeUsed": 20,
    "exit_code": 16,
    "RestartCnt": 10,
    "NumCPUs": 16,
    "TimeLimit": 20,
    "Partition": 128,
    "Comment": 512,
}
QUEUE_FORMAT = ",".join(f"{name}:{width}{RECORD if name == 'Comment' else FIELD}" for name, width in _QUEUE.items())
"""Argument of squeue -O that read_queue understands."""

_HISTORY = ["State", "ExitCode", "Submit", "Start", "End", "ElapsedRaw", "NNodes", "NodeList", "Partition", "JobName"]
_ACCOUNTED = ["Eligible", "AllocCPUS", "TimelimitRaw", "TotalCPU", "MaxRSS", "Comment"]
JOBCOMP_FORMAT = ",".join(["JobID", *_HISTORY])
"""Argument of sacct -c -o: only what jobcomp has (asked for more, sacct 22.05 crashes)."""
ACCOUNTING_FORMAT = ",".join(["JobID", *_HISTORY, *_ACCOUNTED])
"""Argument of sacct -o that read_accounting understands."""

NODE_FORMAT = FIELD.join(("%N", "%P", "%T", "%c", "%m", "%G", "%f", "%E"))
"""Argument of sinfo -N -o that read_nodes understands."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm tells it. Times are in UTC.

    elapsed_s, and cpu_seconds where there is accounting, are sums over all runs of a requeued job once squeue has forgotten it; before
    that elapsed_s is the last run's. exit_code and signal are 0 until something else is known; max_rss_bytes is that of the largest task.
    """

    id: int
    name: str = ""
    state: JobState = JobState.UNKNOWN
    reason: str = ""
    nodes: int = 0
    node_list: str = ""
    submitted: datetime | None = None
    eligible: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    expected_start: datetime | None = None
    elapsed_s: int = 0
    exit_code: int = 0
    signal: int = 0
    restarts: int = 0
    cpus: int = 0
    time_limit_s: int | None = None
    comment: str = ""
    partition: str = ""
    cpu_seconds: float | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True)
class Partition:
    """A partition's limits. None: no limit, or, for `accounts` and `qos`, open to all."""

    name: str
    default: bool
    up: bool
    nodes: int
    cpus: int
    max_nodes: int | None
    max_time_s: int | None
    accounts: tuple[str, ...] | None
    qos: tuple[str, ...] | None


@dataclass(frozen=True)
class Node:
    """A node. `state` is Slurm's word without its marks (idle, mixed, allocated, down, …); `responding` is False for idle* or down*."""

    name: str
    state: str
    responding: bool
    cpus: int
    memory_bytes: int
    gres: str
    features: tuple[str, ...]
    partitions: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Association:
    """An account a user may charge; partition "" means every partition."""

    account: str
    partition: str
    qos: tuple[str, ...]


def read_queue(text: str) -> dict[int, Job]:
    """The jobs that `squeue -O QUEUE_FORMAT` printed."""
    jobs = {}
    for record in text.split(RECORD):
        if len(values := [value.strip() for value in record.split(FIELD)]) == len(_QUEUE):
            job = _queued(dict(zip(_QUEUE, map(_given, values), strict=True)))
            jobs[job.id] = job
    return jobs


def _queued(field: dict[str, str]) -> Job:
    state = JobState.parse(field["State"])
    code, signal = exit_status(field["exit_code"])
    start = moment(field["StartTime"])
    waits = state in (JobState.PENDING, JobState.REQUEUED)
    never = waits or (state is JobState.CANCELLED and not field["NodeList"])
    return Job(
        id=int(field["JobID"]),
        name=field["Name"],
        state=state,
        reason=field["Reason"],
        nodes=number(field["NumNodes"]),
        node_list=field["NodeList"],
        submitted=moment(field["SubmitTime"]),
        eligible=moment(field["EligibleTime"]),
        started=None if never else start,
        ended=moment(field["EndTime"]) if state.finished else None,  # until then it is where the limit would end it
        expected_start=start if waits else None,
        elapsed_s=duration(field["TimeUsed"]) or 0,
        exit_code=code,
        signal=signal,
        restarts=number(field["RestartCnt"]),
        cpus=number(field["NumCPUs"]),
        time_limit_s=duration(field["TimeLimit"]),
        comment=field["Comment"],
        partition=field["Partition"],
    )


def read_accounting(text: str) -> dict[int, Job]:
    """The jobs that `sacct --duplicates -o ACCOUNTING_FORMAT` (or -c with JOBCOMP_FORMAT) printed: all runs of a job as one.

    Runs of an older job of another name, from before the ids began again, are left out.
    """
    runs: dict[int, list[Job]] = {}
    names = ["JobID", *_HISTORY, *_ACCOUNTED]
    for line in text.split("\n"):
        values = [_given(value.strip()) for value in line.split(FIELD)]
        field = dict(zip(names, values + [""] * (len(names) - len(values)), strict=False))
        job, _, step = field["JobID"].partition(".")
        if not job.isdigit():
            continue
        if not step:
            runs.setdefault(int(job), []).append(_accounted(int(job), field))
        elif int(job) in runs:  # a step: its memory counts for the run above it
            last = runs[int(job)][-1]
            rss = max((size for size in (last.max_rss_bytes, size_bytes(field["MaxRSS"])) if size is not None), default=None)
            runs[int(job)][-1] = replace(last, max_rss_bytes=rss)
    return {job: _one(found) for job, found in runs.items()}


def _accounted(job: int, field: dict[str, str]) -> Job:
    state = JobState.parse(field["State"])
    code, signal = exit_status(field["ExitCode"])
    elapsed = number(field["ElapsedRaw"])
    by = re.search(r"CANCELLED by (\d+)", field["State"])
    never = state is JobState.PENDING or (state is JobState.CANCELLED and not elapsed)
    return Job(
        id=job,
        name=field["JobName"],
        state=state,
        reason=f"cancelled by user id {by[1]}" if by else "",  # sacct's Reason is why it once waited
        nodes=number(field["NNodes"]),
        node_list="" if field["NodeList"].startswith("None") else field["NodeList"],
        submitted=moment(field["Submit"]),
        eligible=moment(field["Eligible"]),
        started=None if never else moment(field["Start"]),
        ended=moment(field["End"]),
        elapsed_s=elapsed,
        exit_code=code,
        signal=signal,
        cpus=number(field["AllocCPUS"]),
        time_limit_s=60 * number(field["TimelimitRaw"]) or None,
        comment=field["Comment"],
        partition=field["Partition"],
        cpu_seconds=cpu_time(field["TotalCPU"]),
    )


def _one(runs: list[Job]) -> Job:
    """The last run, with the sums over all of them."""
    last = runs[-1]
    runs = [run for run in runs if run.name == last.name]
    cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
    return replace(
        last,
        restarts=len(runs) - 1,
        submitted=runs[0].submitted,
        elapsed_s=sum(run.elapsed_s for run in runs),
        cpu_seconds=sum(cpu) if cpu else None,
        max_rss_bytes=max((run.max_rss_bytes for run in runs if run.max_rss_bytes is not None), default=None),
    )


def read_nodes(text: str) -> list[Node]:
    """The nodes that `sinfo -N -o NODE_FORMAT` printed (a line for each node and partition)."""
    nodes: dict[str, Node] = {}
    for line in text.split("\n"):
        if line.count(FIELD) != NODE_FORMAT.count(FIELD):
            continue
        name, partition, state, cpus, memory, gres, features, reason = (_given(value) for value in line.split(FIELD))
        partition = partition.rstrip("*")
        if name in nodes:
            nodes[name] = replace(nodes[name], partitions=(*nodes[name].partitions, partition))
            continue
        nodes[name] = Node(
            name=name,
            state=state.rstrip("*~#!%$@^-+").lower(),
            responding="*" not in state,
            cpus=number(cpus),
            memory_bytes=number(memory) * 1024**2,
            gres=gres,
            features=_names(features) or (),
            partitions=(partition,),
            reason="" if reason == "none" else reason,
        )
    return list(nodes.values())


def read_partitions(text: str) -> list[Partition]:
    """The partitions that `scontrol -o show partition` printed."""
    return [
        Partition(
            name=field["PartitionName"],
            default=field.get("Default") == "YES",
            up=field.get("State") == "UP",
            nodes=number(field.get("TotalNodes", "")),
            cpus=number(field.get("TotalCPUs", "")),
            max_nodes=None if field.get("MaxNodes") == "UNLIMITED" else number(field.get("MaxNodes", "")),
            max_time_s=duration(field.get("MaxTime", "")),
            accounts=_names(field.get("AllowAccounts", "ALL")),
            qos=_names(field.get("AllowQos", "ALL")),
        )
        for field in _assignments(text)
        if "PartitionName" in field
    ]


def read_associations(text: str) -> list[Association]:
    """What `sacctmgr --parsable2 show associations format=Account,Partition,QOS` printed."""
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
    return [Association(account, partition, _names(qos) or ()) for account, partition, qos in rows]


def _assignments(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        yield {found[1]: found[2] for found in re.finditer(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line)}


def _given(value: str) -> str:
    """`value`, or "" for one of Slurm's words for nothing."""
    return "" if value in ("(null)", "N/A", "None", "NONE", "Unknown") else value


def _names(value: str) -> tuple[str, ...] | None:
    return None if value == "ALL" else tuple(name for name in value.split(",") if name)


def number(text: str) -> int:
    """The number that `text` begins with ("2-2" nodes: 2; "1024+" MB: 1024); 0 where there is none."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def moment(text: str) -> datetime | None:
    """Seconds since the epoch (SLURM_TIME_FORMAT=%s) as a time in UTC; None for "N/A", "Unknown" and the like."""
    return datetime.fromtimestamp(int(text), UTC) if text.isdigit() and int(text) else None


def duration(text: str) -> int | None:
    """Seconds of "1-02:03:04", "02:03:04", "3:04"; None for UNLIMITED, INVALID and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def cpu_time(text: str) -> float | None:
    """Seconds of sacct's CPU times, "00:00.067" or "1-02:03:04"; None where there is none."""
    whole, _, fraction = text.partition(".")
    seconds = duration(whole)
    return None if seconds is None else seconds + float(f"0.{fraction or 0}")


def size_bytes(text: str) -> int | None:
    """Bytes of "3320K", "1.5G" or "1024"; None where there is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", text)
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else None


def exit_status(text: str) -> tuple[int, int]:
    """(exit code, signal) of sacct's "3:0" or of squeue's raw wait status, "768"."""
    code, colon, signal = text.partition(":")
    if colon:
        return number(code), number(signal)
    status = number(code)
    return (os.WEXITSTATUS(status), 0) if os.WIFEXITED(status) else (0, os.WTERMSIG(status))
