"""Slurm's reasons in words: why a job waits, and why it ended."""

from __future__ import annotations

from stacks.slurm.verdicts import INTERRUPTED

WAITING = {
    "Priority": "others come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for earlier steps",
    "DependencyNeverSatisfied": "an earlier step did not end well",
    "BeginTime": "waits for its begin time",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "ReqNodeNotAvail": "nodes it asks for are down or reserved",
    "NodeDown": "a node is down",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed for now",
    "PartitionConfig": "asks for more than the partition has",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "the account is not valid",
    "AccountNotAllowed": "the partition does not take this account",
    "InvalidQOS": "the QOS is not valid",
    "Cleaning": "an earlier start is being cleared away",
    "launch failed requeued held": "could not be started and is held: scontrol release",
    "QOSMaxJobsPerUserLimit": "your limit of running jobs is reached",
    "QOSMaxNodePerUserLimit": "your limit of nodes is reached",
    "QOSMaxCpuPerUserLimit": "your limit of CPUs is reached",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than the QOS allows",
    "AssocMaxJobsLimit": "the account's limit of running jobs is reached",
    "AssocGrpCPUMinutesLimit": "the account's CPU time is used up",
    "AssocGrpCPURunMinutesLimit": "the account's CPU time is taken by running jobs",
    "AssocGrpBillingMinutes": "the account's allocation is used up",
}
ENDED = {
    "DependencyNeverSatisfied": "an earlier step did not end well",
    "NonZeroExitCode": "the step failed",
    "TimeLimit": "ran into its time limit",
    "OutOfMemory": "used more memory than it asked for",
    "NodeDown": "its node failed",
    "JobLaunchFailure": "killed or not started, often for want of memory",
    "SystemFailure": "Slurm failed",
    "InactiveLimit": "did nothing for too long",
}
FAMILIES = {"QOS": "a limit of the QOS is reached", "AssocGrp": "a limit of the account is reached", "Assoc": "your limit is reached"}


def explain(reason: str, *, restarts: int = 0, finished: bool = False, exit_code: int = 0) -> str:
    """`reason` in words with Slurm's own word kept, as in "waits for free nodes (Resources)"; "" where there is none.

    A step that was asked to end, and did, is no failed one: its `exit_code` tells.
    `restarts` tells a requeued job from one that waits for the time its user gave; a reason nobody translated stays as it is.
    """
    word = reason.strip().strip("()")
    if word in ("", "None", "N/A"):
        return ""
    key = word.split(",")[0].split(":")[0]  # "ReqNodeNotAvail, UnavailableNodes:n2", "RaisedSignal:9(Killed)"
    if key == "NonZeroExitCode" and exit_code == INTERRUPTED:
        return "asked to end, and did"
    if key == "BeginTime" and restarts:
        return f"requeued, waits ({word})"
    waits = WAITING.get(key) or next((words for start, words in FAMILIES.items() if key.startswith(start)), None)
    said = ENDED.get(key) or (waits and "cancelled while it waited") if finished else waits
    return f"{said} ({word})" if said else word
