"""Follow what runs: status, logs, stop."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from cli.session import start_zenml
from cli.summary import RUN
from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import ConfigError
from hls_foundry.home import foundry_home

MOST_LOG_LINES = 10_000
OUR_NAME = re.compile(r"(?P<task>.+)-(?P<pipeline>train|deploy)-\d{8}-\d{6}-[0-9a-f]{4}")
"""The names of the runs that run.py starts: the store may have those of other projects."""

LOOKED_AT = 500

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse


@contextmanager
def recorded_process(run: str) -> Iterator[None]:
    """While the body runs, note which process runs `run`, so that `run.py stop` can find it."""
    folder = _processes()
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{run}.json"
    process = psutil.Process()
    note.write_text(json.dumps({"pid": process.pid, "created": process.create_time()}), encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def show_status(run: str | None) -> None:
    """Print the ten latest runs, or one run's steps: for one on Slurm, with their jobs."""
    start_zenml()
    from zenml.client import Client

    if run is None:
        runs = Client().list_pipeline_runs(sort_by="desc:created", size=10).items
        if not runs:
            click.echo("no runs yet: python run.py starts one")
        for found in runs:
            click.echo(f"{found.name}  {found.status.value}  {_local_time(found.created)}  {found.id}")
        return
    found = find_run(run)
    from cli import slurm_runs

    if connection := slurm_runs.connect(found):
        slurm_runs.show_status(found, connection)
        return
    click.echo(f"{found.name}  {found.status.value}  {found.id}")
    for name, step in found.steps.items():
        took = f"{(step.end_time - step.start_time).total_seconds():.1f} s" if step.start_time and step.end_time else ""
        click.echo(f"  {name:<16} {step.status.value:<10} {took}")


def show_logs(run: str | None, step: str | None, *, follow: bool = False) -> None:
    """Print the logs of a run's steps: Slurm's files where there are any, else what ZenML stored; `follow`: as they grow."""
    start_zenml()
    from cli import on_sagemaker, slurm_runs

    found = find_run(run)
    connection = slurm_runs.connect(found)
    if connection is None and follow and not found.status.is_finished:
        if on_sagemaker.is_on_sagemaker(found):
            raise ConfigError(f"run {found.name} is on SageMaker: leave out --follow for what ZenML has by now, or look in CloudWatch")
        raise ConfigError(f"run {found.name} is not on a cluster: its log is at the terminal that started it")
    if connection and follow and not found.status.is_finished:
        slurm_runs.follow_logs(found, connection, step)
    elif connection is None or not slurm_runs.print_logs(found, connection, step):
        _print_stored_logs(found, step)


def _print_stored_logs(found: PipelineRunResponse, step: str | None) -> None:
    from zenml.artifacts.utils import instantiate_artifact_store
    from zenml.client import Client
    from zenml.log_stores.artifact.artifact_log_store import ArtifactLogStore

    if step and step not in found.steps:
        raise ConfigError(f"run {found.name} has no step '{step}' (steps: {', '.join(found.steps)})")
    for name, step_run in found.steps.items():
        if step in (None, name) and step_run.log_collection:
            click.secho(f"── {name}", bold=True)
            for stream in step_run.log_collection:
                store = instantiate_artifact_store(Client().zen_store.get_stack_component(stream.artifact_store_id))
                page = ArtifactLogStore.from_artifact_store(artifact_store=store).fetch(logs_model=stream, limit=MOST_LOG_LINES)
                for entry in page.items:
                    click.echo(entry.message)


def stop_run(run: str | None, *, now: bool = False) -> None:
    """Stop `run`, or what runs on this machine, else the latest elsewhere; it saves what it has and ends. `now`: without saving."""
    if _stop_process(run, now=now):
        return
    start_zenml()
    from cli import on_sagemaker, slurm_runs

    found = find_run(run) if run else _latest_elsewhere()
    if found and (connection := slurm_runs.connect(found)):
        slurm_runs.stop(found, connection, now=now)
        return
    if found and _stop_process(found.name, now=now):
        return
    if found and on_sagemaker.is_on_sagemaker(found):
        on_sagemaker.stop(found, Aws(AwsSettings(region=str(found.run_metadata["pipeline_execution_arn"]).split(":")[3])))
        return
    raise ConfigError(f"run {run} is not running on this machine" if run else "nothing is running on this machine")


def _stop_process(run: str | None, *, now: bool) -> bool:
    """Signal the process on this machine that runs `run` (None: the latest one); False where there is none."""
    found = sorted(_processes().glob("*.json"), key=lambda note: note.stat().st_mtime) if _processes().is_dir() else []
    for note in reversed([note for note in found if run is None or note.stem == run]):
        content = json.loads(note.read_text(encoding="utf-8"))
        try:
            process = psutil.Process(content["pid"])
            if abs(process.create_time() - content["created"]) < 1:
                process.send_signal(signal.SIGKILL if now else signal.SIGTERM)
                what = f"killed run {note.stem}" if now else f"asked run {note.stem} (process {process.pid}) to stop"
                click.echo(f"{what}; the same command started again goes on from there")
                return True
        except psutil.NoSuchProcess:
            pass
        note.unlink(missing_ok=True)  # left by a process that was killed
    return False


def _latest_elsewhere() -> PipelineRunResponse | None:
    """The newest of the latest runs that has jobs on a cluster or on SageMaker and has not ended."""
    from zenml.client import Client

    from cli import on_sagemaker, slurm_runs

    latest = [run for run in Client().list_pipeline_runs(sort_by="desc:created", size=20, hydrate=True).items if not run.status.is_finished]
    return next((run for run in latest if slurm_runs.connect(run) or on_sagemaker.is_on_sagemaker(run)), None)


def _processes() -> Path:
    return foundry_home() / "runs" / "processes"


def find_run(run: str | None) -> PipelineRunResponse:
    """The run of this name or id; none: the latest. Raises ConfigError where there is none."""
    from zenml.client import Client

    if run is None:
        latest = Client().list_pipeline_runs(sort_by="desc:created", size=1).items
        if not latest:
            raise ConfigError("no runs yet: python run.py starts one")
        return latest[0]
    try:
        return Client().get_pipeline_run(run)
    except (KeyError, ValueError):
        raise ConfigError(f"no run '{run}': python run.py status lists them") from None


def our_runs(task: str | None = None) -> list[PipelineRunResponse]:
    """The runs that run.py started, of `task` (none: of any), the latest first; among the latest 500 of the store."""
    from zenml.client import Client

    latest = Client().list_pipeline_runs(sort_by="desc:created", size=LOOKED_AT).items
    return [run for run in latest if (name := OUR_NAME.fullmatch(run.name)) and task in (None, name["task"])]


def latest_run(task: str | None = None) -> PipelineRunResponse:
    """The latest of `our_runs`. Raises ConfigError where there is none."""
    if runs := our_runs(task):
        return runs[0]
    of_task, option = (f" of task '{task}'", f" --task {task}") if task else ("", "")
    raise ConfigError(f"no runs{of_task} yet: {RUN}{option} starts one")


def _local_time(moment: datetime) -> str:
    return moment.replace(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
