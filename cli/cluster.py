"""The rehearsal cluster at the command line: up, status, down."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import click

from hls_foundry.home import foundry_home
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape


def up(
    nodes: int | None = None, cpus: int | None = None, memory_mb: int | None = None, gpus: int | None = None, network: str | None = None
) -> None:
    """Start the rehearsal cluster, or say that it is up. What is None is as it is, or else the default. Raises SlurmError (one line)."""
    options = {"nodes": nodes, "cpus": cpus, "memory_mb": memory_mb, "gpus": gpus, "network": network}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    shape = default_shape(**given)
    found = Cluster(foundry_home(), shape)
    if found.record and found.running:
        shape = replace(found.record.shape, **given)
    with _undone_when_ended():
        Cluster(foundry_home(), shape, click.echo).up()


def down() -> None:
    """Cancel the rehearsal cluster's jobs and stop it; says so where none is up. Raises SlurmError (one line)."""
    Cluster(foundry_home(), default_shape(), click.echo).down()


def status() -> None:
    """Print the rehearsal cluster, its nodes and what is wrong with them. Raises SlurmError (one line)."""
    cluster = Cluster(foundry_home(), default_shape())
    record = cluster.record
    if record is None or not cluster.running:
        click.echo("no rehearsal cluster is up: python run.py cluster up starts one")
        return
    click.echo(f"up since {record.started}: {record.shape.line()}")
    click.echo(f"export SLURM_CONF={record.slurm_conf}")
    dead = cluster.dead_daemons()
    states = {} if {"munged", "slurmctld"} & set(dead) else cluster.node_states()  # its commands would wait for an answer
    for node in record.shape.names:
        click.echo(f"{node}  {states.get(node, 'unknown')}  {record.addresses[node]}{'  slurmd is dead' if node in dead else ''}")
    for name in dead:
        if name not in record.shape.names:
            click.echo(f"{name} is dead: python run.py cluster up starts it again")


@contextmanager
def _undone_when_ended() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body as Ctrl-C does, so that it clears up behind itself."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
