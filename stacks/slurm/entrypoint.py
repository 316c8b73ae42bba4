"""What runs inside a step's job: `python -m stacks.slurm.entrypoint --step_name … --snapshot_id …`, started by the supervisor.

Two things differ from ZenML's own entry point. A job that Slurm restarts meets its step run again, where ZenML would count a retry.
And a signal from Slurm does not fail the step: the process leaves with exit code 85 and the step run stays as it is, for the
restarted job to go on with or for the closing job to end.
"""

from __future__ import annotations

from hls_foundry.collection import collect_seldom

if __name__ == "__main__":
    collect_seldom()

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.config.step_run_info import StepRunInfo
from zenml.entrypoints.step_entrypoint_configuration import STEP_NAME_OPTION, StepEntrypointConfiguration
from zenml.enums import ExecutionStatus
from zenml.execution.pipeline.utils import prevent_pipeline_execution
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StepRunResponse
from zenml.orchestrators.step_launcher import StepLauncher
from zenml.orchestrators.step_runner import StepRunner
from zenml.pipelines.dynamic.entrypoint_configuration import DynamicPipelineEntrypointConfiguration
from zenml.step_operators.step_operator_entrypoint_configuration import StepOperatorEntrypointConfiguration
from zenml.steps.base_step import BaseStep
from zenml.utils import source_utils

from hls_foundry.errors import FoundryError, Preempted
from stacks.integrations import activate_on_demand
from stacks.slurm.own_job import ENDED, RESTARTING, OwnJob
from stacks.slurm.plan import RUN_ID

INTERRUPTED = 85
REENTER = "HLS_STEP_REENTER"
"""Set to 1 by the supervisor when Slurm has restarted the job in the middle of an attempt."""


class SlurmStepRunner(StepRunner):  # type: ignore[misc]
    """Runs a step; one that was interrupted, or that breaks because its job is taken from it, leaves the process instead of failing."""

    def _load_step(self) -> BaseStep:
        step = super()._load_step()
        call = step.call_entrypoint

        def call_or_leave(*arguments: Any, **parameters: Any) -> Any:
            try:
                return call(*arguments, **parameters)
            except Preempted as interruption:
                print(interruption, file=sys.stderr)
                _leave()
            except Exception as error:
                if not _ended_by_slurm():
                    raise
                print(f"{error}: Slurm is ending or restarting the job, so this is no failure of the step", file=sys.stderr)
                _leave()

        step.call_entrypoint = call_or_leave
        return step


class SlurmStepLauncher(StepLauncher):  # type: ignore[misc]
    """Launches a step of a static pipeline: a new step run at first, the same one after a restart by Slurm."""

    def launch(self) -> StepRunResponse:
        pipeline_run, _ = self._create_or_reuse_run()
        interrupted = interrupted_step_run(pipeline_run, self._invocation_id) if os.environ.get(REENTER) == "1" else None
        if interrupted is None:
            return super().launch()
        logging.getLogger(__name__).info("step %s goes on in the step run that Slurm interrupted", self._invocation_id)
        return self._run_step(pipeline_run=pipeline_run, step_run=interrupted, force_write_logs=lambda: None) or interrupted

    def _run_step_in_current_thread(
        self,
        pipeline_run: PipelineRunResponse,
        step_run: StepRunResponse,
        step_run_info: StepRunInfo,
        input_artifacts: dict[str, Any],
        output_artifact_uris: dict[str, str],
    ) -> StepRunResponse:
        return SlurmStepRunner(step=self._step, stack=self._stack).run(
            pipeline_run=pipeline_run,
            step_run=step_run,
            input_artifacts=input_artifacts,
            output_artifact_uris=output_artifact_uris,
            step_run_info=step_run_info,
        )

    def _should_register_signal_handler(self) -> bool:
        return False  # ZenML's handler fails the step, and a preempted job would have nothing to come back to


def interrupted_step_run(run: PipelineRunResponse, step: str) -> StepRunResponse | None:
    """The step run that a killed job left behind, or None where it did not get that far."""
    found = Client().list_run_steps(pipeline_run_id=run.id, name=step, sort_by="desc:version", size=1, hydrate=True).items
    return found[0] if found and found[0].status == ExecutionStatus.RUNNING else None


class InSourceRoot:
    """ZenML's entry points change to the folder /app of a container; here the frozen code is the working folder already."""

    def prepare_code_environment(self) -> None:
        root = str(Path.cwd())
        source_utils.set_custom_source_root(root)
        if root not in sys.path:
            sys.path.insert(0, root)


class SlurmStepEntrypoint(InSourceRoot, StepEntrypointConfiguration):  # type: ignore[misc]
    """One step of a static pipeline."""

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        SlurmStepLauncher(snapshot=snapshot, step=step, orchestrator_run_id=os.environ[RUN_ID]).launch()


class SlurmIsolatedStepEntrypoint(InSourceRoot, StepOperatorEntrypointConfiguration):  # type: ignore[misc]
    """One step of a dynamic pipeline, in a job of its own. It enters by the id of its step run, so a restart meets the same one."""


class SlurmDynamicEntrypoint(InSourceRoot, DynamicPipelineEntrypointConfiguration):  # type: ignore[misc]
    """A dynamic pipeline's function, which submits its steps as it goes."""


ENTRYPOINTS: dict[str, Callable[[list[str]], Any]] = {
    "step": SlurmStepEntrypoint,
    "isolated": SlurmIsolatedStepEntrypoint,
    "pipeline": SlurmDynamicEntrypoint,
}


def command(python: str, kind: str, **options: str) -> tuple[str, ...]:
    """The command line that `main` takes."""
    return (python, "-m", "stacks.slurm.entrypoint", kind, *(part for name, value in options.items() for part in (f"--{name}", value)))


def main(arguments: list[str]) -> None:
    """Run one entry point in this process."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupted)
    with prevent_pipeline_execution():
        configuration = ENTRYPOINTS[arguments[0]](arguments[1:])
        configuration.prepare_code_environment()
        activate_on_demand()
        _ = Client().zen_store
        try:
            configuration.run()
        except FoundryError:  # what a user can mend: ZenML has just logged it in one line, and a trace would hide that
            sys.exit(1)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """A step that does not save anything itself starts again from its beginning."""
    print(f"interrupted by {signal.Signals(number).name}: the step starts over when the job does", file=sys.stderr)
    _leave()


def _ended_by_slurm() -> bool:
    """Whether this start of the job is being ended, for good or for a restart: what a step says when a node dies is not its own end."""
    own = OwnJob(int(os.environ.get("SLURM_JOB_ID", "0")), int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    return own.standing().is_ in (RESTARTING, ENDED)


def _leave() -> NoReturn:
    """End the process without ZenML's own ending, which would mark the step as failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


__all__ = ["INTERRUPTED", "STEP_NAME_OPTION", "command", "main"]

if __name__ == "__main__":
    main(sys.argv[1:])
