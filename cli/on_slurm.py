"""What run.py does besides for a stack on Slurm: the steps' settings, following the run, bringing its end home."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.summary import RUN
from hls_foundry import errors
from hls_foundry.config import FoundryConfig
from hls_foundry.errors import ConfigError, FoundryError
from hls_foundry.home import checkout, foundry_home
from stacks.definition import REHEARSAL, nearest

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from stacks.definition import StackDefinition, StepSettings


GENTLE_S = 5
"""Slurm is asked about a run at most once in this many seconds."""


class StepFailed(Exception):
    """A run on the cluster ended badly; `str()` of it says which step, and what Slurm says of its job."""


def on_slurm(definition: StackDefinition) -> bool:
    """Whether the stack's pipelines run as Slurm jobs."""
    return any(part.type == "orchestrator" and part.flavor == "slurm" for part in definition.components)


def check_settings(definition: StackDefinition) -> None:
    """What the stack's files say of Slurm, and of which steps. Raises ConfigError, one line with the file."""
    from pipelines.train import STEPS
    from stacks.slurm.requests import cluster_configuration, slurm_requests

    cluster_configuration(definition)
    slurm_requests(definition)
    if unknown := sorted(set(definition.settings.steps) - set(STEPS)):
        raise ConfigError(
            f"{definition.site_file or definition.file}: 'settings.steps.{unknown[0]}': no such step: {nearest(unknown[0], list(STEPS))}"
        )


def at_absolute_places(config: FoundryConfig) -> FoundryConfig:
    """`config` with paths that do not depend on the working folder: a job's is another one."""
    data, model = config.data, config.model
    if "://" not in data.source:
        data = data.model_copy(update={"source": str(Path(data.source).expanduser().absolute())})
    if "://" not in model.weights and model.weights != "none":
        model = model.model_copy(update={"weights": str(Path(model.weights).expanduser().absolute())})
    return config.model_copy(update={"data": data, "model": model})


def pipeline_options(definition: StackDefinition, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ZenML's `with_options`: what every step asks of the cluster, and what some ask instead.

    `parameters` are the pipeline's: chips, weights and archives that lie in folders of their own are to be seen in containers.
    """
    settings, seen = definition.settings, _folders(parameters)
    return {
        "settings": _settings(settings.step(""), seen),
        "steps": {name: {"settings": _settings(settings.step(name), seen), **_retry(settings.step(name))} for name in settings.steps},
    }


def _folders(parameters: Mapping[str, Any]) -> list[str]:
    """The chips', the weights' (of a file, its own folder: an index may be beside it) and that of published archives."""
    config, publishing = parameters["config"], parameters["publishing"]
    named = (config.data.source, str(Path(config.model.weights).parent), publishing.folder or "")
    paths = [Path(place) for place in named if place.startswith("/")]
    return sorted({str(next(there for there in (path, *path.parents) if there.exists())) for path in paths})


def _settings(step: StepSettings, seen: list[str]) -> dict[str, Any]:
    # Absolute, and the submitter's: the jobs run in a frozen copy of the code, and nothing is fetched from a compute node.
    places = {
        "HLS_FOUNDRY_HOME": str(foundry_home()),
        "HLS_FOUNDRY_CHECKOUT": str(checkout()),
        "HF_HUB_OFFLINE": "1",
        "HLS_FOUNDRY_OFFLINE": "1",
    }
    slurm = {**step.slurm, "environment": {**places, **step.slurm.get("environment", {})}}
    container = step.slurm.get("container", {})
    if container.get("runtime", "none") != "none":
        slurm["container"] = {**container, "binds": sorted({*container.get("binds", ()), *seen} - {"/"})}
    return {"orchestrator": slurm, "resources": step.resources.model_dump(exclude_none=True)}


def _retry(step: StepSettings) -> dict[str, Any]:
    return {} if step.retry is None else {"retry": step.retry.model_dump()}


def follow(run: PipelineRunResponse) -> PipelineRunResponse | None:
    """Show the run until it has ended; then ZenML's record of it. None where Ctrl-C ended the watching: the run goes on."""
    from zenml.client import Client
    from zenml.stack import Stack
    from zenml.utils.run_utils import refresh_run_status

    from cli.watch import watch
    from stacks.slurm.client import Slurm
    from stacks.slurm.follow import Follower, Poller, open_run

    if run.status.is_finished:  # everything came from the cache
        return run
    orchestrator: Any = Stack.from_model(run.stack).orchestrator
    transport = orchestrator.transport()
    directory, plan, submitted = open_run(transport, str(run.run_metadata["slurm_folder"]))
    poller = Poller(least_s=max(GENTLE_S, orchestrator.config.poll_s))
    slurm = Slurm(transport, patience_s=GENTLE_S)  # the watch tells of a cluster that does not answer, and asks on
    if not watch(Follower(slurm, transport, directory, plan, submitted, poller), stream=sys.stderr):
        return None
    # Where the closing job was lost itself, this writes the end in its place.
    refresh_run_status(Client().get_pipeline_run(run.id), include_step_updates=False)
    return Client().get_pipeline_run(run.id)


def detached(run: PipelineRunResponse) -> None:
    """Say where a run that was only submitted can be found."""
    click.echo(f"submitted   {run.name}: {len(run.run_metadata.get('slurm_jobs', {}))} jobs, folder {run.run_metadata.get('slurm_folder')}")
    click.echo(
        f"  look at it:   {RUN} status {run.name}\n  read its log: {RUN} logs {run.name} --follow\n  stop it:      {RUN} stop {run.name}"
    )


def problem_of(run: PipelineRunResponse) -> Exception | None:
    """Why a run that has ended failed, None where it did not; a FoundryError where a step said what the user can mend."""
    if run.status.is_successful:
        return None
    reason = run.get_body().status_reason or f"the run is {run.status.value}"
    step, _, said = reason.partition(": ")
    name, _, message = said.partition(": ")
    kind = getattr(errors, name.removeprefix("hls_foundry.errors."), None) if name.startswith("hls_foundry.errors.") else None
    if isinstance(kind, type) and issubclass(kind, FoundryError):
        return FoundryError(f"{step}: {message}")
    return StepFailed(reason)


def rehearsal_environment() -> dict[str, str]:
    """This process's environment, with the address of the rehearsal cluster where one is up (for the stack files' variables)."""
    from stacks.slurm.rehearsal import Cluster
    from stacks.slurm.rehearsal_config import default_shape

    cluster = Cluster(foundry_home(), default_shape())
    found = {REHEARSAL: str(cluster.slurm_conf)} if cluster.record and cluster.running else {}
    return {**found, **os.environ}
