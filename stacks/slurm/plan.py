"""What one run was submitted as: `plan.json` and `jobs.json` in its folder, which jobs, followers and the closing job read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RUN_ID = "ZENML_SLURM_RUN_ID"
"""Environment variable of every job with the orchestrator's run id."""

RUN_FOLDER = "ZENML_SLURM_RUN_FOLDER"
"""Environment variable of every job with the run's folder."""

ExecutionMode = Literal["fail_fast", "stop_on_failure", "continue_on_failure"]


class Record(BaseModel):
    """A part of these files; rejects keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedStep(Record):
    """One step: what its job runs, after which others, and how often it may be tried and restarted."""

    folder: str = Field(description="relative to the run folder")
    after: tuple[str, ...] = Field((), description="the steps whose jobs must have ended well")
    command: tuple[str, ...] = Field(description="the step's process, started by the supervisor")
    nodes: int = 1
    max_retries: int = Field(0, description="ZenML's own retries of a step that failed")
    retry_delay_s: float = 0
    retry_backoff: float = 1
    max_restarts: int = Field(10, description="by Slurm: preemption, time limit, node failure")
    max_restarts_without_progress: int = 3
    image: str = Field("", description="runtime, image and digest of the container that it runs in; empty without one")


class ClosingStep(Record):
    """The job that writes the truth at the end."""

    folder: str
    command: tuple[str, ...]


class Plan(Record):
    """A run as it was submitted; does not change afterwards."""

    run_id: str = Field(description="the orchestrator's run id, the same in every job of the run")
    run_name: str
    pipeline_run_id: str = Field(description="ZenML's")
    snapshot_id: str
    execution_mode: ExecutionMode
    steps: dict[str, PlannedStep]
    closing: ClosingStep
    dynamic: bool = Field(False, description="one job runs the pipeline's function, which submits further ones")

    def branches(self) -> bool:
        """Whether two steps may run side by side, so that one goes on while another has failed."""
        before: dict[str, set[str]] = {}
        for name, step in self.steps.items():  # in topological order
            before[name] = set(step.after).union(*(before[other] for other in step.after))
        return any(len(earlier) != number for number, earlier in enumerate(before.values()))


class Submitted(Record):
    """Slurm's job ids, known once everything is submitted."""

    jobs: dict[str, int] = Field(description="step name → job id")
    closing: int
    failure: int | None = Field(None, description="job that starts as soon as any step has failed; only where steps run side by side")
    submitted_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def ids(self) -> list[int]:
        """All jobs of the run."""
        return [*self.jobs.values(), self.closing, *([] if self.failure is None else [self.failure])]


class StepOutcome(Record):
    """How one step ended: ZenML's status, Slurm's state, and what it cost."""

    zenml: str = Field(description="status of the step run; empty where the step never started")
    state: str = ""
    reason: str = ""
    job_id: int | None = None
    nodes: int = 0
    elapsed_s: float = 0
    wait_s: float = 0
    node_hours: float = 0
    cpu_efficiency: float | None = Field(None, description="CPU time over allocated CPU time, 0–1")
    max_rss_bytes: int | None = None
    restarts: int = 0
    image: str | None = Field(None, description="runtime, image and digest of its container; None without one")


class Outcome(Record):
    """`outcome.json`: what the closing job found and wrote to ZenML."""

    status: str
    reason: str = ""
    steps: dict[str, StepOutcome]
    node_hours: float = 0
