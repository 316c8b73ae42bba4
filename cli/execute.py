"""Run the pipelines of one command on one stack and gather what they made into a summary."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from cli.report import write_report
from cli.session import start_zenml
from cli.summary import Summary
from hls_foundry.config import FoundryConfig
from hls_foundry.errors import FoundryError, Preempted
from hls_foundry.progress import progress_bar

if TYPE_CHECKING:
    from stacks.definition import StackDefinition


def execute(definition: StackDefinition, config: FoundryConfig, pipeline: str, *, use_cache: bool) -> Summary:
    """Run `pipeline` (train, deploy or all) and return its summary, also where a run failed.

    What a user can mend before anything runs raises FoundryError; what goes wrong inside a step ends up in the summary.
    """
    click.echo(f"HLS Foundry: task {config.task.name}, stack {definition.name}, chips from {config.data.source}", err=True)
    from hls_foundry.chips.sources import resolve_source, source_fingerprint
    from hls_foundry.home import foundry_home

    # Before ZenML starts: a source that cannot be had is one line, not a failed run.
    with progress_bar("chips") as progress:
        resolve_source(config.data.source, config.task, foundry_home() / "data", progress=progress)
    fingerprint = source_fingerprint(config.data.source, config.task)
    start_zenml()
    from stacks.registry import register_stack, use_stack

    use_stack(register_stack(definition))
    summary = Summary(stack=definition.name, task=config.task.name)
    if pipeline in ("train", "all"):
        from pipelines.train import train_pipeline

        _run(summary, "train", train_pipeline, use_cache, config=config, publishing=definition.publish, source_fingerprint=fingerprint)
    if pipeline in ("deploy", "all") and summary.status == "completed":
        if definition.endpoint is None:
            raise FoundryError(f"{definition.file} has no endpoint: add one, or run --pipeline train")
        from pipelines.deploy import deploy_pipeline

        _run(summary, "deploy", deploy_pipeline, use_cache, task=config.task.name, endpoint=definition.endpoint)
    summary.report = write_report(summary)
    return summary


def _run(summary: Summary, name: str, pipeline: Callable[..., Any], use_cache: bool, **parameters: Any) -> None:
    """Run one pipeline; its result, good or bad, goes into `summary`."""
    from zenml.client import Client
    from zenml.enums import ExecutionMode

    from cli.runs import recorded_process

    run_name = f"{summary.task}-{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    options = {} if use_cache else {"enable_cache": False}
    configured = pipeline.with_options(run_name=run_name, execution_mode=ExecutionMode.FAIL_FAST, **options)  # type: ignore[attr-defined]
    problem: Exception | None = None
    with recorded_process(run_name):
        try:
            configured(**parameters)
        except Preempted:
            raise
        except Exception as error:  # a FoundryError says what to do; of a defect, the trace is above and in the run's logs
            problem = error
    found = Client().list_pipeline_runs(name=run_name, hydrate=True).items
    if found:
        summary.add(name, found[0])
    if problem is not None:
        summary.fail(problem)
