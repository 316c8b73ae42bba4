"""The rehearsal of AWS at the command line: up, status, down."""

from __future__ import annotations

import os
import shlex

import click

from hls_foundry.errors import ConfigError
from hls_foundry.home import foundry_home
from stacks.aws.rehearsal import Rehearsal


def up(image: str | None = None) -> None:
    """Start the rehearsal, or say that it is up, and print what a shell has to do for other programs to reach it.

    `image`: its endpoints are containers of it. Only that goes to standard output, for `eval`. Raises EndpointError (one line).
    """
    rehearsal = Rehearsal(foundry_home(), _tell)
    rehearsal.up(image)
    environment = rehearsal.environment_in(os.environ)
    if others := sorted(name for name in os.environ if name not in environment):
        click.echo(f"unset {' '.join(others)}")  # such as AWS_PROFILE
    for name in sorted(rehearsal.environment):
        click.echo(f"export {name}={shlex.quote(environment[name])}")


def enter(stack: str) -> None:
    """Start the rehearsal unless it is up, and turn this process's environment to it: only addresses and credentials differ from AWS.

    Raises ConfigError for another stack than aws, EndpointError where the rehearsal cannot be started.
    """
    if stack != "aws":
        raise ConfigError(f"--rehearse rehearses AWS: use it with --stack aws, not with --stack {stack}")
    rehearsal = Rehearsal(foundry_home(), _tell)
    rehearsal.up()
    prepared = rehearsal.prepare()
    environment = rehearsal.environment_in(os.environ)
    environment |= {"HLS_AWS_BUCKET": prepared.bucket, "HLS_AWS_ROLE": prepared.role, "HLS_AWS_IMAGE": prepared.image}
    os.environ.clear()
    os.environ.update(environment)
    click.echo("rehearsal   S3 and SageMaker are stand-ins on this machine, until: python run.py rehearsal down", err=True)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def down() -> None:
    """Stop the rehearsal with its endpoints; says so where none is up. Raises EndpointError (one line)."""
    Rehearsal(foundry_home(), click.echo).down()


def status() -> None:
    """Print whether the rehearsal is up, and its endpoints. Raises EndpointError (one line)."""
    rehearsal = Rehearsal(foundry_home())
    record = rehearsal.record
    if record is None or not rehearsal.running:
        click.echo("no rehearsal of AWS is up: python run.py rehearsal up starts one")
        return
    by = f", endpoints as containers by {record.engine}" if record.engine else ""
    click.echo(f"up since {record.started}: S3 and SageMaker at {record.control_url}, invocations at {record.runtime_url}{by}")
    for name, state in sorted(rehearsal.endpoints().items()):
        click.echo(f"{name}  {state['status']}  {state['config']}{'  ' + state['reason'] if state['reason'] else ''}")
