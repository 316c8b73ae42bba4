"""Runs on Slurm: reach their cluster and their folder, show how they are, print their logs, stop them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from hls_foundry.errors import ConfigError, FoundryError
from stacks.slurm.client import Slurm
from stacks.slurm.follow import CLOSING, Follower, open_run
from stacks.slurm.plan import Outcome
from stacks.slurm.transport import LocalTransport, SSHTransport, Transport

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

UNWRAPPED = 240
PATIENCE_S = 5.0
"""Seconds that somebody at a terminal waits for a cluster that does not answer."""


@dataclass(frozen=True)
class Connection:
    """Where a run is: its folder, and how to get there."""

    folder: str
    transport: Transport

    def follower(self) -> Follower:
        """Raises ConfigError where the run's folder cannot be read."""
        run, plan, submitted = open_run(self.transport, self.folder)
        return Follower(Slurm(self.transport, patience_s=PATIENCE_S), self.transport, run, plan, submitted)

    def outcome(self) -> Outcome | None:
        """What the closing job wrote; None where it has not yet, or where the folder is gone."""
        try:
            return Outcome.model_validate_json(self.transport.read(f"{self.folder}/outcome.json"))
        except (OSError, FoundryError, ValidationError):
            return None


def connect(run: PipelineRunResponse) -> Connection | None:
    """How to reach `run`; None where it is not one on Slurm."""
    metadata: dict[str, Any] = run.run_metadata
    if not metadata.get("slurm_folder"):
        return None
    environment = {"SLURM_CONF": str(metadata["slurm_conf"])} if metadata.get("slurm_conf") else {}
    transport: Transport = LocalTransport(environment)
    if login := metadata.get("slurm_login"):
        transport = SSHTransport(str(login), options=_ssh_options(run), environment=environment)
    return Connection(str(metadata["slurm_folder"]), transport)


def show_status(run: PipelineRunResponse, connection: Connection) -> None:
    """One table: what Slurm says of each step's job beside ZenML's status; ZenML's alone where the cluster does not answer."""
    from rich.console import Console

    from cli.watch import step_table, unplaced

    click.echo(f"{run.name}  {run.status.value}  {run.id}")
    statuses = {name: step.status.value for name, step in run.steps.items()}
    rows, trouble, follower = [], "", None
    try:
        follower = connection.follower()
        rows = follower.rows()
    except FoundryError as error:
        trouble = str(error)
        rows = follower.last_rows() if follower else []
    rows = [*(unplaced(name) for name in statuses if name not in {row.step for row in rows}), *rows]
    # Where nobody looks, lines are for other programs: they are not wrapped to a terminal's width.
    Console(highlight=False, width=None if sys.stdout.isatty() else UNWRAPPED).print(step_table(rows, zenml=statuses))
    click.echo(f"folder  {connection.folder}")
    if trouble:
        click.echo(f"Slurm's view is missing ({trouble}): this is what ZenML has", err=True)
    elif follower and follower.finished and not run.status.is_finished:
        click.echo(f"all jobs have ended and nobody wrote the end: zenml pipeline runs refresh {run.id}", err=True)


def print_logs(run: PipelineRunResponse, connection: Connection, step: str | None) -> bool:
    """Slurm's log files, which hold everything that the steps' jobs wrote. False where the run's folder is gone."""
    try:
        files = connection.follower().log_files()
    except ConfigError:
        return False
    for name in [_known(run, step, files)] if step else [name for name in files if name != CLOSING]:
        try:
            content = connection.transport.read(files[name])
        except FileNotFoundError:
            continue  # its job has not started
        click.secho(f"── {name} ({files[name]})", bold=True)
        click.echo(content.decode("utf-8", "replace"), nl=not content.endswith(b"\n"))
    return True


def follow_logs(run: PipelineRunResponse, connection: Connection, step: str | None) -> None:
    """The logs as they grow, until the run has ended or Ctrl-C."""
    from cli.watch import stream_logs

    follower = connection.follower()
    if step:
        _known(run, step, follower.log_files())
    stream_logs(follower, stream=sys.stdout, steps=[step] if step else [])


def stop(run: PipelineRunResponse, connection: Connection, *, now: bool) -> None:
    """Ask the run to save and end, or end it at once; prints what was done. Raises ConfigError where it has ended."""
    from zenml.stack import Stack

    from cli.summary import RUN

    if run.status.is_finished:
        raise ConfigError(f"run {run.name} has ended already ({run.status.value}): nothing to stop")
    if run.stack is None:
        raise ConfigError(f"the stack of run {run.name} was deleted: scancel its jobs ({_job_ids(run)})")
    follower = connection.follower()
    before = Counter("running" if row.state.value != "PENDING" else "waiting" for row in follower.rows() if not row.state.finished)
    Stack.from_model(run.stack).orchestrator.stop_run(run, graceful=not now)
    some = before["waiting"], before["running"]
    waiting = f"{some[0]} waiting job{'s' * (some[0] != 1)} cancelled"
    theirs = "its" if some[1] == 1 else "their"
    running = f"{some[1]} running one{'s' * (some[1] != 1)} {'killed' if now else f'asked to save {theirs} state and end'}"
    click.echo(f"run {run.name}: {waiting}, {running}; {RUN} status {run.name} shows it end")


def _known(run: PipelineRunResponse, step: str, files: Mapping[str, str]) -> str:
    """`step`, if it is one of those that have a job."""
    if step not in files:
        raise ConfigError(f"run {run.name} has no step '{step}' with a job (steps: {', '.join(files)})")
    return step


def _job_ids(run: PipelineRunResponse) -> str:
    return " ".join(str(job) for job in dict(run.run_metadata.get("slurm_jobs", {})).values())


def _ssh_options(run: PipelineRunResponse) -> list[str]:
    """As in the orchestrator's configuration; none where its stack was deleted."""
    from zenml.enums import StackComponentType

    orchestrators = run.stack.components.get(StackComponentType.ORCHESTRATOR, []) if run.stack else []
    return list(orchestrators[0].configuration.get("ssh_options") or []) if orchestrators else []
