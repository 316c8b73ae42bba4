#!/usr/bin/env python
"""The command line of HLS Foundry: choose a stack, a task and a pipeline; run it; print a summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from cli.interrupts import heeded_interrupts
from cli.screen import Screen
from hls_foundry.collection import collect_seldom
from hls_foundry.errors import ConfigError, FoundryError, Preempted
from hls_foundry.home import REPOSITORY, foundry_home

CONFIGS = REPOSITORY / "configs"
DEFAULT_PIPELINE = {"local": "all", "hpc": "train", "aws": "deploy"}
EXIT_USER, EXIT_INTERRUPTED, EXIT_PREEMPTED = 2, 130, 85

stack_option = click.option("--stack", metavar="NAME", default="local", show_default=True, help="Where it runs: stacks/NAME.yaml.")
rehearse_option = click.option("--rehearse", is_flag=True, help="Stand-ins of AWS on this machine, with --stack aws.")
site_option = click.option("--site", metavar="NAME", help="Which cluster, of --stack hpc: stacks/sites/NAME.yaml.")
task_option = click.option("--task", metavar="NAME", help="What is mapped: configs/NAME.yaml.  [default: burn_scars]")
config_option = click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="Instead of configs/demo.yaml (with --data: the task's)."
)
data_option = click.option("--data", metavar="SOURCE", help="PATH, s3://BUCKET/PREFIX, hf://OWNER/NAME or synthetic://")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key (training.epochs=20); may be repeated."
)
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "color": False if os.environ.get("NO_COLOR") else None,  # https://no-color.org; None: at a terminal
}


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a user can mend into one line and exit code 2, an interruption into 130, a saved preemption into 85."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with heeded_interrupts():
                return command(*args, **kwargs)
        except FoundryError as error:
            _fail(str(error), EXIT_USER)
        except Preempted as error:
            _fail(f"{error}: run the same command again to go on", EXIT_INTERRUPTED if error.signal_number == 2 else EXIT_PREEMPTED)
        except KeyboardInterrupt:
            _fail("interrupted: nothing half-written is left; run the same command again to go on", EXIT_INTERRUPTED)

    return wrapped


def _fail(line: str, code: int) -> None:
    click.secho(f"error: {line}" if code == EXIT_USER else line, fg="red", err=True)
    sys.exit(code)


@click.group(cls=Screen, invoke_without_command=True, context_settings=SETTINGS, subcommand_metavar="[COMMAND [ARGS]...]")
@stack_option
@site_option
@task_option
@click.option(
    "--pipeline", metavar="WHICH", type=click.Choice(["train", "deploy", "all"]), help="train, deploy or all.  [default: the stack's]"
)
@config_option
@data_option
@set_option
@click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the summary as JSON, too (-: standard output)."
)
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@click.option("--detach", is_flag=True, help="Return after submission (hpc, aws-managed).")
@rehearse_option
@click.option("--dry-run", is_flag=True, help="Check, say what would run, and stop.")
@click.pass_context
@user_errors
def main(
    context: click.Context,
    stack: str,
    site: str | None,
    task: str | None,
    pipeline: str | None,
    config: Path | None,
    data: str | None,
    overrides: tuple[str, ...],
    json_file: Path | None,
    no_cache: bool,
    detach: bool,
    rehearse: bool,
    dry_run: bool,
) -> None:
    """Labelled HLS chips in, tested endpoint out. Without a command: all of it."""
    if context.invoked_subcommand:
        return
    _enter_rehearsal(rehearse, stack)
    from hls_foundry.config import load_config
    from stacks.definition import load_stack

    definition = load_stack(stack, _environment(stack), site=site)
    overrides = (*definition.config_overrides(), *overrides)
    settings = load_config(CONFIGS, task=task, file=config, overrides=overrides, source=data)
    chosen = pipeline or DEFAULT_PIPELINE.get(stack, "all")
    if detach and stack not in ("hpc", "aws-managed"):
        raise ConfigError("--detach needs a cluster (--stack hpc) or aws-managed: this stack's runs live in this process")
    if detach and json_file:
        raise ConfigError("--json is written when the run has ended: leave out --detach")
    if dry_run:
        from hls_foundry.chips.sources import source_fingerprint

        source_fingerprint(settings.data.source, settings.task)
        line = f"would run pipeline '{chosen}' of task '{settings.task.name}' on stack '{stack}' with chips from {settings.data.source}"
        click.echo(line, err=json_file is not None)
        return
    from cli.execute import execute
    from cli.summary import standard_output_for, write

    with standard_output_for(json_file):
        summary = execute(definition, settings, chosen, use_cache=not no_cache, detach=detach, rehearsed=rehearse)
    if summary is not None:
        write(summary, json_file)
        sys.exit(summary.exit_code)


def _enter_rehearsal(rehearse: bool, stack: str) -> None:
    if rehearse:
        from cli.rehearsal import enter

        enter(stack)


def _environment(stack: str) -> dict[str, str]:
    if stack != "hpc":
        from stacks.images import pushed_images

        return {**pushed_images(foundry_home()), **os.environ}
    from cli.on_slurm import rehearsal_environment

    return rehearsal_environment()


@main.command()
@stack_option
@site_option
@task_option
@rehearse_option
@user_errors
def doctor(stack: str, site: str | None, task: str | None, rehearse: bool) -> None:
    """Check a stack and say what is missing."""
    from cli.doctor import check_stack, print_checks

    _enter_rehearsal(rehearse, stack)
    if not print_checks(check_stack(stack, task, CONFIGS, site=site, environment=_environment(stack))):
        sys.exit(EXIT_USER)


@main.command()
@click.argument("run", required=False)
@user_errors
def status(run: str | None) -> None:
    """Show the latest runs, or the steps of one RUN (name or id)."""
    from cli.runs import show_status

    show_status(run)


@main.command()
@click.argument("run", required=False)
@click.option("--step", help="One step only.")
@click.option("--follow", is_flag=True, help="Go on printing until the run has ended.")
@user_errors
def logs(run: str | None, step: str | None, follow: bool) -> None:
    """Print what the steps of RUN (default: the latest) logged."""
    from cli.runs import show_logs

    show_logs(run, step, follow=follow)


@main.command()
@click.argument("run", default="latest")
@click.option("--task", metavar="NAME", help="With 'latest': the latest run of this task.  [default: of any]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="HTML.  [default: runs/RUN/report.html in the home folder]")
@click.option("--png", type=click.Path(path_type=Path), metavar="FOLDER", help="Write each picture there as a PNG file, too.")
@user_errors
def report(run: str, task: str | None, out: Path | None, png: Path | None) -> None:
    """Write all pictures of RUN (name, id or 'latest') as one HTML file."""
    from cli.report import show_report

    show_report(run, task, out=out, png=png)


@main.command()
@click.argument("run", required=False)
@click.option("--now", is_flag=True, help="At once, without saving what was done since the last checkpoint.")
@user_errors
def stop(run: str | None, now: bool) -> None:
    """Stop RUN; what it has done is saved.

    Default: what runs on this machine, else the latest run on Slurm.
    """
    from cli.runs import stop_run

    stop_run(run, now=now)


@main.command()
@click.argument("scene", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="FILE.tif, FILE.geojson or FILE.gpkg.  [default: SCENE_prediction.tif beside it]"
)
@click.option("--task", metavar="NAME", default="burn_scars", show_default=True, help="Whose endpoint or bundle.")
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle folder or model.tar.gz.  [default: the one last deployed]")
@click.option("--endpoint", help="Ask this endpoint, here or on SageMaker, instead of predicting in this process.")
@click.option("--rehearse", is_flag=True, help="The endpoint is on the rehearsal of AWS.")
@click.option("--bands", help="Six band numbers or names, comma-separated.  [default: by the file]")
@click.option("--scale", type=float, help="File value × SCALE = reflectance.  [default: by the file's type]")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability from which a pixel is class 1.  [default: the likelier class]")
@user_errors
def predict(
    scene: tuple[Path, ...],
    out: Path | None,
    task: str,
    bundle: Path | None,
    endpoint: str | None,
    rehearse: bool,
    bands: str | None,
    scale: float | None,
    threshold: float | None,
) -> None:
    """Map SCENE (a GeoTIFF, or the band files or the folder of an HLS granule) to a mask or polygons."""
    from cli.endpoints import identity
    from hls_foundry.endpoints.predict import PredictRequest, predict_file

    _enter_rehearsal(rehearse, "aws")
    chosen = scene[0] if len(scene) == 1 else scene
    request = PredictRequest(scene=chosen, out=out, bands=bands, scale=scale, threshold=threshold)
    click.echo(predict_file(request, foundry_home(), task=task, bundle=bundle, endpoint=endpoint, aws=identity()))


@main.command()
@click.option("--stack", type=click.Choice(["local", "aws"]), default="local", show_default=True, help="Where they are.")
@rehearse_option
@click.option("--delete", metavar="NAME", help="Stop and delete this endpoint.")
@click.option("--objects", is_flag=True, help="With --delete on aws: its objects in S3 as well.")
@user_errors
def endpoints(stack: str, rehearse: bool, delete: str | None, objects: bool) -> None:
    """List the endpoints, or delete one with all that it was made of."""
    from cli import endpoints as commands

    _enter_rehearsal(rehearse, stack)
    if delete:
        commands.delete(delete, stack, objects=objects)
    else:
        commands.show(stack, rehearsed=rehearse)


@main.command()
@task_option
@config_option
@data_option
@set_option
@user_errors
def fetch(task: str | None, config: Path | None, data: str | None, overrides: tuple[str, ...]) -> None:
    """Fetch chips and weights, for nodes without a network."""
    from cli.fetch import fetch as fetch_all
    from hls_foundry.config import load_config

    fetch_all(load_config(CONFIGS, task=task, file=config, overrides=overrides, source=data))


@main.group()
def rehearsal() -> None:
    """Stand-ins of AWS on this machine, which --rehearse uses."""


@rehearsal.command("up")
@click.option("--containers", is_flag=True, help="Endpoints are containers of the serving image, by docker or podman, not processes.")
@click.option("--image", metavar="NAME", help="With --containers: another than hls-foundry-serve of this version (make images).")
@user_errors
def rehearsal_up(containers: bool, image: str | None) -> None:
    """Start them, and print for a shell how other programs reach them: eval "$(python run.py rehearsal up)"."""
    from cli.rehearsal import up
    from stacks.aws.rehearsal.engines import default_image

    if image and not containers:
        raise ConfigError("--image is for --containers: add it")
    up((image or default_image()) if containers else None)


@rehearsal.command("status")
@user_errors
def rehearsal_status() -> None:
    """Say whether they are up, and which endpoints there are."""
    from cli.rehearsal import status as show

    show()


@rehearsal.command("down")
@user_errors
def rehearsal_down() -> None:
    """Stop them with their endpoints."""
    from cli.rehearsal import down

    down()


@main.group()
def cluster() -> None:
    """A Slurm cluster on this machine, to rehearse --stack hpc."""


@cluster.command("up")
@click.option("--nodes", type=click.IntRange(1, 64), help="Nodes.  [default: 2]")
@click.option("--cpus", type=click.IntRange(1), help="CPUs of each; may be more than there are.")
@click.option("--memory", "memory_mb", type=click.IntRange(256), help="MB of each.")
@click.option("--gpus", type=click.IntRange(0, 16), help="Pretended GPUs of each.")
@click.option("--network", type=click.Choice(["none", "hosts", "isolated"]), help="[default: hosts as root, else none]")
@user_errors
def cluster_up(**shape: Any) -> None:
    """Start it (Debian: needs the packages slurm-wlm and munge)."""
    from cli.cluster import up

    up(**shape)


@cluster.command("status")
@user_errors
def cluster_status() -> None:
    """Say whether it is up, and how its nodes are."""
    from cli.cluster import status as show

    show()


@cluster.command("down")
@user_errors
def cluster_down() -> None:
    """Cancel its jobs and stop it."""
    from cli.cluster import down

    down()


@main.command()
@click.option("--task", help="The latest run of this task.  [default: of any]")
@click.option("--run", help="This run (name or id) instead of the latest.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where it answers, on 127.0.0.1.  [default: as before, or a free one]")
@click.option("--no-open", is_flag=True, help="Only print the addresses.")
@click.option("--stop", "stop_it", is_flag=True, help="Stop it.")
@user_errors
def dashboard(task: str | None, run: str | None, port: int | None, no_open: bool, stop_it: bool) -> None:
    """Open the lineage of the latest run in ZenML's dashboard, which answers until stopped."""
    from cli import dashboard as commands

    if stop_it:
        commands.stop()
    else:
        commands.show(task, run, port=port, open_browser=not no_open)


if __name__ == "__main__":
    collect_seldom()
    main()
