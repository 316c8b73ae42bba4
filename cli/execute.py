"""Run the pipelines of one command on one stack and gather what they made into a summary."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from cli import on_sagemaker as sagemaker
from cli.on_slurm import at_absolute_places, check_settings, detached, follow, on_slurm, pipeline_options, problem_of
from cli.report import write_report
from cli.session import start_zenml
from cli.summary import Summary
from hls_foundry.config import FoundryConfig
from hls_foundry.endpoints.aws import Aws, aws_errors
from hls_foundry.errors import FoundryError, Preempted
from hls_foundry.progress import progress_bar
from stacks.aws.managed import deploying, on_sagemaker

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from stacks.definition import StackDefinition


def execute(
    definition: StackDefinition, config: FoundryConfig, pipeline: str, *, use_cache: bool, detach: bool = False, rehearsed: bool = False
) -> Summary | None:
    """Run `pipeline` (train, deploy or all) and return its summary, also where a run failed; None where it goes on without us.

    `rehearsed`: AWS is the rehearsal's, which the commands that the summary tells have to say.

    What a user can mend before anything runs raises FoundryError; what goes wrong inside a step ends up in the summary.
    """
    click.echo(f"HLS Foundry: task {config.task.name}, stack {definition.name}, chips from {config.data.source}", err=True)
    config = at_absolute_places(config)
    managed = on_sagemaker(definition)
    if managed:
        sagemaker.check_places(config)
    fingerprint = _fetch(definition, config)
    start_zenml()
    if managed:
        sagemaker.check_server()
        sagemaker.pipeline_options(definition)  # what it refuses, before anything is registered
    if on_slurm(definition):
        check_settings(definition)
    from stacks.registry import register_stack, use_stack

    use_stack(register_stack(definition))
    summary = Summary(stack=definition.name, task=config.task.name, rehearsed=rehearsed)
    run = _Runs(summary, definition, use_cache, detach)
    if pipeline in ("train", "all"):
        from pipelines.train import train_pipeline

        run("train", train_pipeline, config=config, publishing=definition.publish, source_fingerprint=fingerprint)
    if pipeline in ("deploy", "all") and summary.status == "completed" and not run.left_alone:
        if definition.endpoint is None:
            raise FoundryError(f"{definition.file} has no endpoint: add one, or run --pipeline train")
        from pipelines.deploy import deploy_pipeline

        if managed:  # as on the stack aws: in this process, as whoever runs it
            run = _Runs(summary, deploying(definition), use_cache, detach)
            use_stack(register_stack(run.definition))
        run("deploy", deploy_pipeline, task=config.task.name, endpoint=definition.endpoint, publishing=definition.publish)
    if run.left_alone:
        return None
    summary.report = write_report(summary)
    return summary


def _fetch(definition: StackDefinition, config: FoundryConfig) -> str:
    """Bring the chips here, before ZenML starts: a source that cannot be had is one line, not a failed run. Returns their fingerprint."""
    if on_slurm(definition):
        from cli.fetch import fetch

        fetch(config)  # the weights as well: compute nodes have no network
    elif not on_sagemaker(definition):  # whose jobs fetch them themselves
        from hls_foundry.chips.sources import resolve_source
        from hls_foundry.home import foundry_home

        with progress_bar("chips") as progress:
            resolve_source(config.data.source, config.task, foundry_home() / "data", progress=progress)
    from hls_foundry.chips.sources import source_fingerprint

    return source_fingerprint(config.data.source, config.task)


class _Runs:
    """Runs one pipeline after the other; what they made, good or bad, goes into the summary."""

    def __init__(self, summary: Summary, definition: StackDefinition, use_cache: bool, detach: bool) -> None:
        self.summary, self.use_cache, self.detach = summary, use_cache, detach
        self.definition, self.on_slurm, self.on_sagemaker = definition, on_slurm(definition), on_sagemaker(definition)
        self.elsewhere = self.on_slurm or self.on_sagemaker
        self.left_alone = False

    def __call__(self, name: str, pipeline: Callable[..., Any], **parameters: Any) -> None:
        from zenml.client import Client
        from zenml.enums import ExecutionMode

        from cli.runs import recorded_process

        run_name = f"{self.summary.task}-{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        options: dict[str, Any] = {} if self.use_cache else {"enable_cache": False}
        if self.on_slurm:
            options |= pipeline_options(self.definition, parameters)
        if self.on_sagemaker:
            options |= sagemaker.pipeline_options(self.definition)
        else:  # SageMaker's pipelines know one mode only
            options["execution_mode"] = ExecutionMode.FAIL_FAST
        configured = pipeline.with_options(run_name=run_name, **options)  # type: ignore[attr-defined]
        problem: Exception | None = None
        with nullcontext() if self.elsewhere else recorded_process(run_name):
            try:
                with aws_errors("SageMaker") if self.on_sagemaker else nullcontext():
                    configured(**parameters)
            except Preempted:
                raise
            except Exception as error:  # a FoundryError says what to do; of a defect, the trace is above and in the run's logs
                problem = error
        found = Client().list_pipeline_runs(name=run_name, hydrate=True).items
        run = found[0] if found else None
        if self.elsewhere and isinstance(problem, FoundryError):
            raise problem  # nothing was submitted: there is nothing to sum up
        if run is not None and self.elsewhere and problem is None:
            run, problem = self._until_its_end(run)
        if run is not None:
            self.summary.add(name, run)
        if problem is not None:
            self.summary.fail(problem)

    def _until_its_end(self, run: PipelineRunResponse) -> tuple[PipelineRunResponse | None, Exception | None]:
        """A run on a cluster or on SageMaker once it has ended, and why it failed; None where it goes on without us."""
        if self.on_sagemaker:
            aws = Aws(self.definition.publish.aws)
            ended = sagemaker.detached(run) if self.detach else sagemaker.follow(run, aws)
            problem = sagemaker.problem_of(ended, aws) if ended is not None else None
        else:
            ended = detached(run) if self.detach else follow(run)
            problem = problem_of(ended) if ended is not None else None
        self.left_alone = ended is None
        return ended, problem
