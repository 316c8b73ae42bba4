"""The orchestrator behind the flavor `slurm`: submits pipelines as graphs of Slurm jobs, says how they are, and stops them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.config.resource_settings import ResourceSettings
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
from zenml.models.v2.core.pipeline_run import PipelineRunUpdate
from zenml.orchestrators import BaseOrchestrator, SubmissionResult
from zenml.utils import source_utils

from hls_foundry.errors import ConfigError, FoundryError
from stacks.slurm.client import Slurm
from stacks.slurm.contained import contained_job, image_names
from stacks.slurm.container import contained_command
from stacks.slurm.container_host import PYTHON
from stacks.slurm.freeze import freeze
from stacks.slurm.plan import RUN_FOLDER, RUN_ID, ClosingStep, Plan, PlannedStep
from stacks.slurm.plan import ExecutionMode as PlannedMode
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.settings import Resources, SlurmOrchestratorConfig, SlurmSettings, resources_of
from stacks.slurm.states import JobState
from stacks.slurm.submission import StepJob, Submission, isolated_runs, read_plan, read_submitted
from stacks.slurm.transport import LocalTransport, SSHTransport, Transport
from stacks.slurm.truth import Truth, write_truth

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_configurations import Step
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import StepRunResponse
    from zenml.stack import Stack

PIPELINE_JOB = "pipeline"
"""Name of the job that runs a dynamic pipeline's function."""

STATUSES = {
    JobState.PENDING: ExecutionStatus.PROVISIONING,
    JobState.COMPLETED: ExecutionStatus.COMPLETED,
    JobState.CANCELLED: ExecutionStatus.CANCELLED,
}


class SlurmOrchestrator(BaseOrchestrator):  # type: ignore[misc]
    """Pipelines as Slurm jobs. Everything of a run is in its folder on the shared file system; the client may go away."""

    _transport: Transport | None = None

    @property
    def config(self) -> SlurmOrchestratorConfig:
        return cast(SlurmOrchestratorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        return SlurmSettings

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    def get_orchestrator_run_id(self) -> str:
        try:
            return os.environ[RUN_ID]
        except KeyError:
            raise RuntimeError(f"{RUN_ID} is not set: only a job of the run has an orchestrator run id") from None

    # ---- submission ---------------------------------------------------------------------------------------------------------------

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult:
        """Queue one job a step, and the closing job. Raises FoundryError before anything is queued where the cluster cannot run it."""
        from stacks.slurm.entrypoint import command

        jobs: dict[str, StepJob] = {}
        planned: dict[str, PlannedStep] = {}
        run = self._run_directory(placeholder_run)
        for name, step in snapshot.step_configurations.items():
            own = {key: value for key, value in step_environments[name].items() if base_environment.get(key) != value}
            job = self._step_job(step.config.settings, step.config.resource_settings, own)
            jobs[name] = contained_job(job, run, run.step(name), self.transport(), beside=jobs.values())
            after = tuple(other for other in step.spec.upstream_steps if other in snapshot.step_configurations)
            line = command(self._python_in(jobs[name]), "step", step_name=name, snapshot_id=str(snapshot.id))
            planned[name] = self._planned(run, name, step, jobs[name], line, after)
        return self._submit(snapshot, placeholder_run, base_environment, planned, jobs)

    def submit_dynamic_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        environment: dict[str, str],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult:
        """Queue the job that runs the pipeline's function; it submits isolated steps as jobs of their own."""
        from stacks.slurm.entrypoint import command

        configuration = snapshot.pipeline_configuration
        run = self._run_directory(placeholder_run)
        job = self._step_job(configuration.settings, ResourceSettings(), {})
        job = contained_job(job, run, run.step(PIPELINE_JOB), self.transport())
        line = self._contained(job, command(self._python_in(job), "pipeline", snapshot_id=str(snapshot.id), run_id=str(run.root.name)))
        folder, image = self._folder(run, PIPELINE_JOB), job.container.name if job.container else ""
        planned = PlannedStep(folder=folder, command=line, max_restarts=job.settings.max_restarts, image=image)
        return self._submit(snapshot, placeholder_run, environment, {PIPELINE_JOB: planned}, {PIPELINE_JOB: job})

    def _submit(
        self,
        snapshot: PipelineSnapshotResponse,
        placeholder_run: PipelineRunResponse | None,
        environment: Mapping[str, str],
        planned: dict[str, PlannedStep],
        jobs: dict[str, StepJob],
    ) -> SubmissionResult:
        if snapshot.schedule:
            raise ConfigError("the Slurm orchestrator does not run schedules: remove it, and submit from scrontab or cron")
        from stacks.slurm.preflight import Request, check_folder, check_requests  # not needed in jobs, which import this module, too

        assert placeholder_run is not None  # only scheduled pipelines have none
        run, transport = self._run_directory(placeholder_run), self.transport()
        slurm = Slurm(transport)
        closing = contained_job(self._closing_job(jobs), run, run.closing, transport, beside=jobs.values())
        closing_line = self._contained(closing, (self._python_in(closing), "-m", "stacks.slurm.closing", str(run.root)))
        requests = {name: Request(name, job.settings, job.resources) for name, job in {**jobs, "closing": closing}.items()}
        check_requests(slurm, requests)
        if not self.config.login:
            check_folder(Path(run.root.parent))
        plan = Plan(
            run_id=run.root.name,
            run_name=placeholder_run.name,
            pipeline_run_id=str(placeholder_run.id),
            snapshot_id=str(snapshot.id),
            execution_mode=cast(PlannedMode, snapshot.pipeline_configuration.execution_mode.value),
            steps=planned,
            closing=ClosingStep(folder="closing", command=closing_line),
            dynamic=snapshot.is_dynamic,
        )
        submission = Submission(slurm, transport, run, plan, self._python)
        frozen = freeze(Path(source_utils.get_source_root()))
        submitted = submission.submit(frozen, self._environment(run, environment), jobs, closing)
        # Without it, ZenML refuses to stop a run whose first job is still waiting.
        Client().zen_store.update_run(placeholder_run.id, PipelineRunUpdate(orchestrator_run_id=plan.run_id))
        metadata: dict[str, Any] = {
            "slurm_folder": str(run.root),
            "slurm_jobs": submitted.jobs,
            "slurm_closing": submitted.closing,
            "slurm_login": self.config.login or "",
            "slurm_conf": self.config.slurm_conf or "",
            **({"slurm_images": images} if (images := image_names(list(jobs.values()))) else {}),
        }
        wait = (lambda: self._wait(slurm, submitted.closing)) if self.config.synchronous else None
        return SubmissionResult(wait_for_completion=wait, metadata=metadata)

    def _planned(
        self, run: RunDirectory, name: str, step: Step, job: StepJob, line: tuple[str, ...], after: tuple[str, ...]
    ) -> PlannedStep:
        retry, settings = step.config.retry, job.settings
        return PlannedStep(
            folder=self._folder(run, name),
            after=after,
            command=self._contained(job, line),
            nodes=settings.nodes,
            max_retries=retry.max_retries if retry else 0,
            retry_delay_s=retry.delay if retry else 0,
            retry_backoff=retry.backoff if retry else 1,
            max_restarts=settings.max_restarts,
            max_restarts_without_progress=settings.max_restarts_without_progress,
            image=job.container.name if job.container else "",
        )

    def _contained(self, job: StepJob, line: tuple[str, ...]) -> tuple[str, ...]:
        return contained_command(self._python, job.container.folder, line) if job.container else line

    def _python_in(self, job: StepJob) -> str:
        return job.container.settings.python if job.container else self._python

    def _folder(self, run: RunDirectory, name: str) -> str:
        return str(run.step(name).root.relative_to(run.root))

    def _run_directory(self, run: PipelineRunResponse | None) -> RunDirectory:
        if run is None:
            raise ConfigError("the Slurm orchestrator does not run schedules: remove it, and submit from scrontab or cron")
        return RunDirectory(PurePosixPath(self.config.folder) / str(run.id))

    def _step_job(self, settings: Mapping[str, Any], resources: ResourceSettings, environment: Mapping[str, str]) -> StepJob:
        for key in (f"{self.type}:{self.name}", f"{self.type}.{self.flavor}"):
            if key in settings:
                over = SlurmSettings.model_validate(settings[key].model_dump(exclude_unset=True))
                return StepJob(self.config.defaults().merged(over), resources_of(resources), environment)
        return StepJob(self.config.defaults(), resources_of(resources), environment)

    def _closing_job(self, steps: Mapping[str, StepJob]) -> StepJob:
        settings = self.config.closing_settings()
        contained = next((job.settings for job in steps.values() if job.settings.container.active), None)
        if contained and not settings.container.active:  # said of the steps alone
            chosen = contained.model_dump(exclude_unset=True, include={"container", "modules", "setup"})
            settings = settings.merged(SlurmSettings(**chosen))
        return StepJob(settings, Resources(cpus=1, gpus=None, memory_mib=1024))

    def _environment(self, run: RunDirectory, environment: Mapping[str, str]) -> dict[str, str]:
        own = {
            "ZENML_LOCAL_STORES_PATH": GlobalConfiguration().local_stores_path,
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_COLORS_DISABLED": "true",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            RUN_ID: run.root.name,
            RUN_FOLDER: str(run.root),
        }
        return {**environment, **own}

    @property
    def _python(self) -> str:
        return self.config.python or os.environ.get(PYTHON) or sys.executable  # in a container: the host's

    def transport(self) -> Transport:
        """How this component reaches the cluster."""
        if self._transport is None:
            environment = {"SLURM_CONF": self.config.slurm_conf} if self.config.slurm_conf else {}
            if self.config.login:
                self._transport = SSHTransport(self.config.login, options=self.config.ssh_options, environment=environment)
            else:
                self._transport = LocalTransport(environment)
        return self._transport

    def _wait(self, slurm: Slurm, closing: int) -> None:
        while not slurm.jobs([closing])[closing].state.finished:
            time.sleep(self.config.poll_s)

    # ---- status and stop ----------------------------------------------------------------------------------------------------------

    def fetch_status(
        self, run: PipelineRunResponse, include_steps: bool = False
    ) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
        """What Slurm says of `run`. Where its jobs have ended and nobody has written so yet, that is done here."""
        truth = self._truth(run)
        if truth.all_ended:
            write_truth(truth, final=True)
        steps: dict[str, ExecutionStatus] = {}
        for step, job_id in (truth.submitted.jobs if truth.submitted else {}).items():
            ended = truth.ended(step)
            state = truth.jobs[job_id].state
            steps[step] = ended.status if ended else STATUSES.get(state, ExecutionStatus.RUNNING)
        status = Client().get_pipeline_run(run.id).status
        return status, steps if include_steps else None

    def _stop_run_gracefully(self, pipeline_run: PipelineRunResponse) -> None:
        """Waiting jobs are cancelled; running ones are asked to save what they have and end."""
        ids = self._mark_stopping(pipeline_run)
        slurm = Slurm(self.transport())
        slurm.cancel(ids, state=JobState.PENDING)
        running = [job.id for job in slurm.jobs(ids).values() if not job.state.finished]
        slurm.cancel(running, signal="TERM", full=True)

    def _stop_run_forcefully(self, pipeline_run: PipelineRunResponse) -> None:
        """All jobs are cancelled but the closing job, which writes the end."""
        Slurm(self.transport()).cancel(self._mark_stopping(pipeline_run))

    def _mark_stopping(self, run: PipelineRunResponse) -> list[int]:
        """Note in the run's folder, and in those of its isolated steps, that it is to stop; returns the jobs of all steps."""
        truth = self._truth(run)
        transport, ids = truth.transport, list(truth.submitted.jobs.values()) if truth.submitted else []
        transport.write(str(truth.run.stopping), b"", mode=0o600)  # from now on no further steps are submitted
        for inner in isolated_runs(transport, truth.run) if truth.plan.dynamic else []:
            transport.write(str(inner.stopping), b"", mode=0o600)
            submitted = read_submitted(transport, inner)
            ids += submitted.jobs.values() if submitted else ()
        return ids

    def _truth(self, run: PipelineRunResponse) -> Truth:
        folder = run.run_metadata.get("slurm_folder")
        if not folder:
            raise FoundryError(f"run {run.name} has no Slurm folder: it was not submitted to a cluster")
        directory, transport = RunDirectory(PurePosixPath(str(folder))), self.transport()
        return Truth(Slurm(transport), transport, directory, read_plan(transport, directory), read_submitted(transport, directory))

    # ---- isolated steps of dynamic pipelines ----------------------------------------------------------------------------------------

    def submit_isolated_step(self, step_run_info: StepRunInfo, environment: dict[str, str]) -> None:
        """From the pipeline's own job: queue a job for one step run, in a folder of its own below the run's."""
        from stacks.slurm.entrypoint import command
        from stacks.slurm.preflight import Request, check_requests

        outer, transport = _outer_run(), self.transport()
        name = step_run_info.pipeline_step_name
        run, slurm = outer.isolated(str(step_run_info.step_run_id)), Slurm(transport)
        if transport.exists(str(outer.stopping)):
            raise FoundryError(f"step {name} is not submitted: the run is being stopped")
        job = self._step_job(step_run_info.config.settings, step_run_info.config.resource_settings, environment)
        job = contained_job(job, run, run.step(name), transport, outer)
        line = command(
            self._python_in(job),
            "isolated",
            step_name=name,
            snapshot_id=str(step_run_info.snapshot.id),
            step_run_id=str(step_run_info.step_run_id),
        )
        check_requests(slurm, {name: Request(name, job.settings, job.resources)})
        parent = read_plan(transport, outer)
        planned = PlannedStep(
            folder=self._folder(run, name),
            command=self._contained(job, line),
            nodes=job.settings.nodes,
            max_restarts=job.settings.max_restarts,
            image=job.container.name if job.container else "",
        )
        plan = parent.model_copy(update={"steps": {name: planned}, "execution_mode": "continue_on_failure", "dynamic": False})
        Submission(slurm, transport, run, plan, self._python).submit_alone(outer.code, self._environment(outer, environment), name, job)

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """ZenML's status where the step has reported one, else what became of its job."""
        status = cast(ExecutionStatus, Client().get_run_step(step_run.id, hydrate=False).status)
        if status.is_finished:
            return status
        truth = self._isolated(step_run)
        ended = truth.ended(step_run.name)
        if ended is None:
            return status
        return ended.status if not ended.status.is_successful else ExecutionStatus.FAILED

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Cancel the job of one step run."""
        truth = self._isolated(step_run)
        if truth.submitted:
            truth.slurm.cancel(truth.submitted.ids())

    def _isolated(self, step_run: StepRunResponse) -> Truth:
        run, transport = _outer_run().isolated(str(step_run.id)), self.transport()
        return Truth(Slurm(transport), transport, run, read_plan(transport, run), read_submitted(transport, run))


def _outer_run() -> RunDirectory:
    try:
        return RunDirectory(PurePosixPath(os.environ[RUN_FOLDER]))
    except KeyError:
        raise FoundryError(f"isolated steps are submitted by the job of their pipeline, and {RUN_FOLDER} is not set here") from None
