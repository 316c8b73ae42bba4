"""Brings ZenML's record of a run in line with what Slurm says became of its jobs, and notes what they cost."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus, MetadataResourceTypes
from zenml.models import ExceptionInfo, PipelineRunResponse, RunMetadataResource, StepRunRequest, StepRunResponse, StepRunUpdate
from zenml.models.v2.core.pipeline_run import PipelineRunUpdate
from zenml.utils.time_utils import utc_now

from stacks.slurm.client import Slurm
from stacks.slurm.cost import costs, totals
from stacks.slurm.plan import Outcome, Plan, StepOutcome, Submitted
from stacks.slurm.records import Job
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.transport import Transport

log = logging.getLogger(__name__)

LONGEST_REASON = 255
INTERRUPTED_SUBMISSION = "the submission was interrupted before all jobs were queued: run the same command again"


@dataclass(frozen=True)
class Ended:
    """How a step's job ended, in ZenML's word and in one line."""

    status: ExecutionStatus
    reason: str


class Truth:
    """What is known of one run: its plan, its jobs, and what its supervisors noted."""

    def __init__(self, slurm: Slurm, transport: Transport, run: RunDirectory, plan: Plan, submitted: Submitted | None) -> None:
        self.slurm, self.transport, self.run, self.plan, self.submitted = slurm, transport, run, plan, submitted
        self.jobs: Mapping[int, Job] = slurm.jobs(submitted.jobs.values()) if submitted else {}
        self.states = {name: self._state(name) for name in plan.steps}
        self.stopping = transport.exists(str(run.stopping))

    def ended(self, step: str) -> Ended | None:
        """How the job of `step` ended; None while it may still run."""
        job = self._job(step)
        if job is None or not job.state.finished:
            return None
        noted = self.states[step].get("reason") or ""
        where = f"Slurm job {job.id} {job.state.value}"
        if job.state.ok:
            return Ended(ExecutionStatus.COMPLETED, where)
        if self.stopping:
            return Ended(ExecutionStatus.STOPPED, f"{where}: the run was stopped")
        status = ExecutionStatus.CANCELLED if job.state is JobState.CANCELLED else ExecutionStatus.FAILED
        return Ended(status, f"{where}: {noted or self._explain(job)}")

    @property
    def all_ended(self) -> bool:
        return self.submitted is not None and all(self.ended(step) for step in self.plan.steps)

    def _explain(self, job: Job) -> str:
        if job.state is JobState.TIMEOUT:
            return f"it did not end within its time limit ({job.time_limit_s or 0:.0f} s)"
        if job.state is JobState.NODE_FAIL:
            return f"its node died ({job.node_list})"
        if job.state is JobState.OUT_OF_MEMORY or job.signal == 9:
            return "killed, most likely for taking more memory than it asked for" if job.state is not JobState.CANCELLED else "cancelled"
        if job.reason == "DependencyNeverSatisfied":
            return "a step before it did not end well"
        return job.reason if job.reason not in ("", "None") else f"exit code {job.exit_code}"

    def _job(self, step: str) -> Job | None:
        return self.jobs.get(self.submitted.jobs[step]) if self.submitted and step in self.submitted.jobs else None

    def _state(self, step: str) -> dict[str, Any]:
        path = str(self.run.step(step).state)
        if not self.transport.exists(path):
            return {}
        try:
            content: dict[str, Any] = json.loads(self.transport.read(path))
        except ValueError:
            return {}
        return content


def recorded(plan: Plan) -> bool:
    """Whether ZenML still has the run; somebody may have deleted it."""
    try:
        Client().get_pipeline_run(UUID(plan.pipeline_run_id), hydrate=False)
    except KeyError:
        return False
    return True


def write_truth(truth: Truth, *, final: bool) -> Outcome:
    """Give every step run whose job has ended its end, and, where `final`, the run; returns (and writes where `final`) the outcome.

    What ZenML has ended already stays. May be called again, by whoever finds the run first.
    """
    client = Client()
    ends = end_steps(truth)
    run = client.get_pipeline_run(truth.plan.pipeline_run_id)
    if final or any(ended and not ended.status.is_successful for ended in ends.values()):
        _end_run(client, run, truth, ends)
        run = client.get_pipeline_run(run.id)
    outcome = _outcome(truth, run, ends)
    if final:
        _publish_costs(client, run, outcome)
        truth.transport.write(str(truth.run.outcome), outcome.model_dump_json(indent=1).encode(), mode=0o600)
    return outcome


def end_steps(truth: Truth) -> dict[str, Ended | None]:
    """Give every step run whose job has ended its end; returns how the jobs ended."""
    client = Client()
    run = client.get_pipeline_run(truth.plan.pipeline_run_id)
    ends = {step: truth.ended(step) for step in truth.plan.steps}
    for step, ended in ends.items():
        step_run = run.steps.get(step)
        if ended is not None and step_run is not None and not step_run.status.is_finished:
            _end_step(client, step_run, ended)
    return ends


def _end_step(client: Client, step_run: StepRunResponse, ended: Ended) -> None:
    status, reason = ended.status, ended.reason
    if status.is_successful:
        # The job ended well and its step did not say so: its last write did not reach the store.
        status, reason = ExecutionStatus.FAILED, f"{reason}, but the step did not report its results"
    while step_run.is_retriable and status is not ExecutionStatus.STOPPED:
        # ZenML would wait for a retry that nobody makes any more; its retries are used up one by one.
        step_run = client.zen_store.create_run_step(
            StepRunRequest(
                name=step_run.name,
                project=step_run.project_id,
                pipeline_run_id=step_run.pipeline_run_id,
                status=ExecutionStatus.RUNNING,
                start_time=utc_now(),
            )
        )
    client.zen_store.update_run_step(
        step_run_id=step_run.id,
        step_run_update=StepRunUpdate(status=status, end_time=utc_now(), exception_info=ExceptionInfo(traceback=reason)),
    )


def _end_run(client: Client, run: PipelineRunResponse, truth: Truth, ends: Mapping[str, Ended | None]) -> None:
    bad = {step: ended for step, ended in ends.items() if ended and not ended.status.is_successful}
    if truth.stopping:
        # Asked for again, ZenML turns "stopping" into "stopped" once all step runs have ended; in dynamic pipelines it leaves that to us.
        status, reason = ExecutionStatus.STOPPED if truth.plan.dynamic else ExecutionStatus.STOPPING, "stopped"
    elif truth.submitted is None:
        status, reason = ExecutionStatus.FAILED, INTERRUPTED_SUBMISSION
    elif bad:
        first = min(bad, key=lambda step: (truth.states[step] == {}, list(ends).index(step)))
        status, reason = ExecutionStatus.FAILED, f"step {first}: {_said(run.steps.get(first)) or bad[first].reason}"
        failed = [step for step in run.steps.values() if step.status == ExecutionStatus.FAILED] if truth.plan.dynamic else []
        if failed:  # the job of a dynamic pipeline fails because of one of its steps
            reason = f"step {failed[0].name}: {_said(failed[0])}"
    else:
        status, reason = ExecutionStatus.COMPLETED, ""
    if run.status.is_finished and (run.status != status or run.get_body().status_reason):
        return
    client.zen_store.update_run(run_id=run.id, run_update=PipelineRunUpdate(status=status, status_reason=reason[:LONGEST_REASON] or None))


def _said(step_run: StepRunResponse | None) -> str:
    """The last line of what a step raised or was given as its end; empty where there is none."""
    info = None if step_run is None else step_run.exception_info
    lines = info.traceback.strip().splitlines() if info and info.traceback else []
    return lines[-1] if lines else ""


def _outcome(truth: Truth, run: PipelineRunResponse, ends: Mapping[str, Ended | None]) -> Outcome:
    steps: dict[str, StepOutcome] = {}
    found = costs(truth.plan, truth.submitted, truth.jobs, truth.states) if truth.submitted else {}
    for step, ended in ends.items():
        step_run = run.steps.get(step)
        cost = found[step].as_json() if step in found else {}
        image = truth.plan.steps[step].image or None
        steps[step] = StepOutcome(
            zenml=step_run.status.value if step_run else "", reason=ended.reason if ended else "", image=image, **cost
        )
    return Outcome(status=run.status.value, reason=run.get_body().status_reason or "", steps=steps, node_hours=totals(found))


def _publish_costs(client: Client, run: PipelineRunResponse, outcome: Outcome) -> None:
    resources: list[tuple[UUID, MetadataResourceTypes, dict[str, Any]]] = [
        (run.steps[step].id, MetadataResourceTypes.STEP_RUN, cost.model_dump(exclude_none=True))
        for step, cost in outcome.steps.items()
        if step in run.steps
    ]
    resources.append((run.id, MetadataResourceTypes.PIPELINE_RUN, {"node_hours": outcome.node_hours}))
    for resource, kind, values in resources:
        metadata = {"slurm": values} if kind is MetadataResourceTypes.STEP_RUN else {f"slurm_{key}": value for key, value in values.items()}
        client.create_run_metadata(metadata=metadata, resources=[RunMetadataResource(id=resource, type=kind)])
