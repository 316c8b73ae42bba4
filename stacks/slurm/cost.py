"""What a run cost: node-hours, waiting, CPU efficiency and memory of each step, from Slurm's records and the jobs' own notes.

Pure. Works with what there is: Slurm forgets jobs, sites have no accounting, and a job that never started noted nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from stacks.slurm.plan import Plan, Submitted
from stacks.slurm.records import Job
from stacks.slurm.states import JobState

_OUTCOMES = {
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "stopped": JobState.CANCELLED,
    "requeued": JobState.PENDING,
}


@dataclass(frozen=True)
class StepCost:
    """What one step cost, all restarts and retries together.

    elapsed_s: seconds it held its nodes; wait_s: seconds it could have run and waited in the queue, at first and after each requeue;
    node_hours: nodes × elapsed; cpu_efficiency: CPU time over allocated CPU time, 0–1; max_rss_bytes: the most memory on one node (from
    accounting alone: of one task). None: nobody measured it.
    """

    job_id: int
    state: JobState
    nodes: int
    elapsed_s: float
    wait_s: float
    node_hours: float
    cpu_efficiency: float | None
    max_rss_bytes: int | None
    restarts: int

    def as_json(self) -> dict[str, Any]:
        """For the summary and ZenML's metadata; seconds to the millisecond."""
        rounded = {"elapsed_s": round(self.elapsed_s, 3), "wait_s": round(self.wait_s, 3), "node_hours": round(self.node_hours, 6)}
        efficiency = None if self.cpu_efficiency is None else round(self.cpu_efficiency, 4)
        return {**asdict(self), **rounded, "state": self.state.value, "cpu_efficiency": efficiency}


@dataclass(frozen=True)
class _Held:
    """One start of a job: its nodes were held from `start` to `end`."""

    start: datetime
    end: datetime
    nodes: int
    cpus: int

    @property
    def seconds(self) -> float:
        return max(0.0, (self.end - self.start).total_seconds())


def costs(plan: Plan, submitted: Submitted, jobs: Mapping[int, Job | None], states: Mapping[str, Mapping[str, Any]]) -> dict[str, StepCost]:
    """The cost of every submitted step. `jobs`: what Slurm knows, by job id; `states`: the steps' state.json, {} where there is none."""
    starts = {step: _starts(states.get(step) or {}) for step in submitted.jobs}
    found: dict[str, StepCost] = {}
    for step, job_id in submitted.jobs.items():
        planned = plan.steps.get(step)
        before = [_ended(jobs.get(submitted.jobs[other]), starts[other]) for other in (planned.after if planned else ()) if other in starts]
        ready = max([submitted.submitted_at, *(end for end in before if end is not None)])
        found[step] = _cost(job_id, jobs.get(job_id), states.get(step) or {}, starts[step], ready)
    return found


def totals(found: Mapping[str, StepCost]) -> float:
    """Node-hours of a whole run."""
    return sum(cost.node_hours for cost in found.values())


def _cost(job_id: int, job: Job | None, state: Mapping[str, Any], starts: list[_Held], ready: datetime) -> StepCost:
    if job is not None and job.state is JobState.UNKNOWN:
        job = None
    nodes = (starts[-1].nodes if starts else 0) or (job.nodes if job else 0)
    held = sum(start.seconds for start in starts)
    node_seconds = sum(start.seconds * start.nodes for start in starts)
    if job is not None and job.started is not None and job.elapsed_s > held:
        # Slurm counts from the prologue to the epilogue; a requeued job's record may hold its last start alone, and is then the smaller.
        node_seconds += (job.elapsed_s - held) * nodes
        held = job.elapsed_s
    runs = state.get("runs") or []
    peaks = [int(run["max_rss_bytes"]) for run in runs if run.get("max_rss_bytes")]
    peaks += [job.max_rss_bytes] if job is not None and job.max_rss_bytes else []
    return StepCost(
        job_id=job_id,
        state=job.state if job else _OUTCOMES.get(str(state.get("outcome")), JobState.UNKNOWN),
        nodes=nodes,
        elapsed_s=held,
        wait_s=_waited(job, starts, ready),
        node_hours=node_seconds / 3600,
        cpu_efficiency=_efficiency(job, runs, starts),
        max_rss_bytes=max(peaks, default=None),
        restarts=max(int(state.get("restarts") or 0), job.restarts if job else 0),
    )


def _starts(state: Mapping[str, Any]) -> list[_Held]:
    """The starts of a job; the nodes were held between two attempts within one, too."""
    grouped: dict[int, list[Mapping[str, Any]]] = {}
    for run in state.get("runs") or []:
        grouped.setdefault(int(run["restart"]), []).append(run)
    return [
        _Held(
            _moment(runs[0]["started"]),
            _moment(runs[-1]["ended"] or runs[-1]["last_seen"]),
            int(runs[0].get("nodes") or 1),
            int(runs[0].get("cpus") or 0),
        )
        for runs in grouped.values()
    ]


def _waited(job: Job | None, starts: list[_Held], ready: datetime) -> float:
    """`ready`: when the run was submitted, or the last step before this one ended."""
    first = starts[0].start if starts else (job.started if job else None)
    if first is None:
        return 0.0
    if job is not None and (job.restarts == 0 or not starts) and job.submitted is not None:  # a requeue writes over Slurm's times
        ready = max(ready if job.eligible is None else job.eligible, job.submitted)
        first = job.started or first
    between = sum((later.start - earlier.end).total_seconds() for earlier, later in pairwise(starts))
    return max(0.0, (first - ready).total_seconds()) + max(0.0, between)


def _efficiency(job: Job | None, runs: list[Mapping[str, Any]], starts: list[_Held]) -> float | None:
    if job is not None and job.cpu_seconds is not None and job.elapsed_s and job.cpus:
        return min(1.0, max(0.0, job.cpu_seconds / (job.elapsed_s * job.cpus)))
    allocated = sum(start.seconds * (start.cpus or (job.cpus if job else 0)) for start in starts)
    if not allocated:
        return None
    return min(1.0, max(0.0, sum(float(run.get("cpu_seconds") or 0) for run in runs) / allocated))


def _ended(job: Job | None, starts: list[_Held]) -> datetime | None:
    return job.ended if job is not None and job.ended is not None else (starts[-1].end if starts else None)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
