"""Slurm's job states, as squeue, sacct and jobcomp spell them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """What a job is doing. UNKNOWN: no source knows the job any more, so it can be neither waited for nor trusted to have ended well."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    REQUEUED = "REQUEUED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    UNKNOWN = "UNKNOWN"

    @property
    def finished(self) -> bool:
        """Whether the job has ended and will not run again by itself; False for UNKNOWN."""
        return self in _FINISHED

    @property
    def ok(self) -> bool:
        """Whether the job has ended with exit code 0."""
        return self is JobState.COMPLETED

    @classmethod
    def parse(cls, text: str) -> JobState:
        """The state in `text`, for example "CANCELLED by 0", "RUNNING" or "CONFIGURING"; UNKNOWN for what Slurm does not have."""
        word = text.strip().split(" ", 1)[0].rstrip("+").upper()
        return _OTHERS.get(word) or cls.__members__.get(word, cls.UNKNOWN)


_FINISHED = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.NODE_FAIL,
        JobState.PREEMPTED,
        JobState.BOOT_FAIL,
        JobState.DEADLINE,
    }
)

_OTHERS = {
    "CONFIGURING": JobState.RUNNING,  # it has its nodes, and they boot on its time
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,
    "STOPPED": JobState.SUSPENDED,
    "REQUEUE_HOLD": JobState.PENDING,  # held: the reason says by whom
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.REQUEUED,
    "REVOKED": JobState.CANCELLED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
}
