"""What a stack file asks of the cluster, typed: the orchestrator's configuration and each step's request. Imports ZenML."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from zenml.config import ResourceSettings

from hls_foundry.errors import ConfigError
from hls_foundry.home import resolve_path
from stacks.definition import StackDefinition, StepSettings
from stacks.slurm.preflight import Request
from stacks.slurm.settings import SlurmOrchestratorConfig, SlurmSettings, parse_settings, resources_of

OTHER_STEPS = "the other steps"


def cluster_configuration(definition: StackDefinition) -> SlurmOrchestratorConfig:
    """The configuration of the stack's Slurm orchestrator, its folder absolute. Raises ConfigError: file, key, reason in one line."""
    given: dict[str, Any] = next((dict(part.configuration) for part in definition.components if part.flavor == "slurm"), {})
    if "folder" in given and not given.get("login"):
        given["folder"] = str(resolve_path(str(given["folder"])))
    try:
        return SlurmOrchestratorConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["configuration", *(str(part) for part in first["loc"])])
        problem = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise ConfigError(f"{_file(definition)}: orchestrator's '{key}': {problem}") from None


def slurm_requests(definition: StackDefinition) -> dict[str, Request]:
    """What the steps that the stack names ask for, and under OTHER_STEPS what all others do.

    Raises ConfigError, one line with file, key and reason, for a key that Slurm settings do not have, or a value that they refuse.
    """
    config = cluster_configuration(definition)
    settings = definition.settings
    requests = {}
    for name in (OTHER_STEPS, *settings.steps):
        # First the defaults by themselves, so that the line names the place where the key stands.
        parse_settings(settings.slurm, f"{_file(definition)}: settings.slurm")
        parsed = parse_settings(settings.step(name).slurm, f"{_file(definition)}: settings.steps.{name}.slurm")
        requests[name] = _request(name, config.defaults(), parsed, settings.step(name))
    return requests


def _request(name: str, defaults: SlurmSettings, parsed: SlurmSettings, step: StepSettings) -> Request:
    resources = ResourceSettings(**step.resources.model_dump(exclude_none=True))
    return Request(name, defaults.merged(parsed), resources_of(resources))


def _file(definition: StackDefinition) -> str:
    """The file that says it, or both where a site may have."""
    return str(definition.file) if definition.site_file is None else f"{definition.file} with {definition.site_file.name}"
