"""What a run on Slurm came to: the summary's `slurm` block, its lines for a person, and what to do about a step that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cli.watch import duration
from hls_foundry.errors import FoundryError
from stacks.slurm.plan import Outcome, StepOutcome
from stacks.slurm.run_directory import RunDirectory

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse

KEYS = ("job_id", "state", "nodes", "elapsed_s", "wait_s", "node_hours", "cpu_efficiency", "max_rss_bytes", "restarts")
WENT_WRONG = ("failed", "cancelled", "stopped")
NEXT = {
    "TIMEOUT": "give the step more time ({settings}), or start the same command again: it goes on from its last checkpoint",
    "DEADLINE": "give the step more time ({settings}), or start the same command again: it goes on from its last checkpoint",
    "OUT_OF_MEMORY": "give the step more memory ({settings}), then start the same command again",
    "NODE_FAIL": "start the same command again: steps that are done are not repeated",
    "BOOT_FAIL": "start the same command again: steps that are done are not repeated",
    "PREEMPTED": "start the same command again: it goes on from its last checkpoint",
    "CANCELLED": "start the same command again: steps that are done are not repeated",
}
MENDED = "once it is mended start the same command again: steps that are done are not repeated"


class RunFailed(Exception):
    """A run on the cluster failed for a reason that is no mistake of the user's."""


@dataclass(frozen=True)
class SlurmRecord:
    """How one run on Slurm ended, as far as it is written down."""

    folder: str
    outcome: Outcome

    def as_json(self) -> dict[str, Any]:
        """The block `slurm` of the summary; steps that never got a job are left out."""
        steps = {name: {key: getattr(step, key) for key in KEYS} for name, step in self.outcome.steps.items() if step.job_id is not None}
        return {"folder": self.folder, "steps": steps, "node_hours": self.outcome.node_hours}

    def log(self, step: str) -> PurePosixPath:
        """Slurm's log file of `step`."""
        return RunDirectory(PurePosixPath(self.folder)).step(step).log


def slurm_record(run: PipelineRunResponse) -> SlurmRecord | None:
    """The record of a run on Slurm: what its closing job wrote, else what ZenML holds; None for a run that was not on Slurm."""
    from cli.slurm_runs import connect

    connection = connect(run)
    if connection is None:
        return None
    return SlurmRecord(connection.folder, connection.outcome() or _from_metadata(run))


def failure(run: PipelineRunResponse, record: SlurmRecord) -> tuple[str | None, Exception] | None:
    """(step, problem) of a run that did not end well, None of one that did or goes on.

    What a step said is the problem where it could say something; what a user can mend is a FoundryError here as well.
    """
    if run.status.value not in WENT_WRONG:
        return None
    step = _first_bad(run, record.outcome)
    told = record.outcome.steps.get(step or "")
    exception = run.steps[step].exception_info if step in run.steps else None
    if exception is not None and exception.message:
        mendable = (exception.source or "").startswith("hls_foundry.errors.")
        return step, FoundryError(exception.message) if mendable else RunFailed(exception.message)
    reason = (told.reason if told else "") or record.outcome.reason or run.get_body().status_reason or f"the run is {run.status.value}"
    return step, RunFailed(reason)


def lines(block: dict[str, Any]) -> list[str]:
    """The block `slurm` as a person reads it: a table of the steps, and what they cost in all."""
    steps: dict[str, dict[str, Any]] = block["steps"]
    if not steps:
        return []
    head = ["", "job", "state", "nodes", "elapsed", "waited", "node-hours", "CPU", "memory"]
    rows = [head, *([name, *cells(step)] for name, step in steps.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = [f"{'' if number else 'slurm':<12}{_aligned(row, widths)}".rstrip() for number, row in enumerate(rows)]
    return [*table, f"cost        {total(block)}"]


def cells(step: dict[str, Any]) -> list[str]:
    """One step's job, state, nodes, elapsed and waited time, node-hours, CPU efficiency and memory, with their units."""
    efficiency, memory = step["cpu_efficiency"], step["max_rss_bytes"]
    restarted = f", {step['restarts']} restart{'s' * (step['restarts'] != 1)}" if step["restarts"] else ""
    return [
        str(step["job_id"]),
        f"{step['state']}{restarted}",
        str(step["nodes"]),
        duration(step["elapsed_s"]),
        duration(step["wait_s"]),
        f"{step['node_hours']:.4f}",
        "" if efficiency is None else f"{efficiency:.0%}",
        "" if memory is None else f"{memory / 1e6:,.0f} MB",
    ]


def total(block: dict[str, Any]) -> str:
    """0.0340 node-hours in 5 jobs, waited 12 s, most memory 812 MB."""
    steps = list(block["steps"].values())
    told = [f"{block['node_hours']:.4f} node-hours in {len(steps)} job{'s' * (len(steps) != 1)}"]
    told.append(f"waited {duration(sum(step['wait_s'] for step in steps))}")
    if restarts := sum(step["restarts"] for step in steps):
        told.append(f"{restarts} restart{'s' * (restarts != 1)}")
    if memory := max((step["max_rss_bytes"] or 0 for step in steps), default=0):
        told.append(f"most memory {memory / 1e6:,.0f} MB")
    return ", ".join(told)


def advice(record: SlurmRecord, step: str, stack: str, said: str) -> list[str]:
    """Of a step that failed: what Slurm says (unless `said` already), where its log is, and what to do."""
    told = record.outcome.steps.get(step) or StepOutcome(zenml="")
    words = told.reason or (f"Slurm job {told.job_id} {told.state}" if told.state else "")
    slurm = [words] if words and words not in said else []
    state = told.state
    if told.zenml == "stopped":
        state = "CANCELLED"
    elif state == "FAILED" and "memory" in told.reason:  # where Slurm has no state of its own for it
        state = "OUT_OF_MEMORY"
    following = NEXT.get(state, MENDED).format(settings=f"settings in stacks/{stack}.yaml")
    return [*slurm, f"its file: {record.log(step)}", f"next: {following}"]


def merged(records: Sequence[SlurmRecord]) -> dict[str, Any] | None:
    """The block of all runs of a command; the folder is the last one's."""
    if not records:
        return None
    blocks = [record.as_json() for record in records]
    steps = {name: step for block in blocks for name, step in block["steps"].items()}
    return {"folder": blocks[-1]["folder"], "steps": steps, "node_hours": sum(block["node_hours"] for block in blocks)}


def _first_bad(run: PipelineRunResponse, outcome: Outcome) -> str | None:
    """The step that failed by itself rather than for another's sake."""
    ended = {name: step.status.value for name, step in run.steps.items()}
    told = {name: step.zenml for name, step in outcome.steps.items() if step.job_id is not None and step.elapsed_s > 0}
    for status in WENT_WRONG:
        for statuses in (ended, told):
            if found := next((name for name, value in statuses.items() if value == status), None):
                return found
    # No step run says so: its job ended before ZenML could start in it.
    return next((name for name, step in outcome.steps.items() if step.state not in ("", "COMPLETED")), None)


def _from_metadata(run: PipelineRunResponse) -> Outcome:
    """What the closing job has published with the step runs."""
    steps = {name: outcome for name, step in run.steps.items() if (outcome := _published(step)) is not None}
    hours = run.run_metadata.get("slurm_node_hours", sum(step.node_hours for step in steps.values()))
    return Outcome(status=run.status.value, reason=run.get_body().status_reason or "", steps=steps, node_hours=float(hours))


def _published(step: StepRunResponse) -> StepOutcome | None:
    try:
        return StepOutcome.model_validate(step.run_metadata["slurm"])
    except (KeyError, ValidationError):
        return None


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    left = (0, 2)  # step and state
    return "  ".join(
        f"{cell:<{width}}" if i in left else f"{cell:>{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
