"""A stack on ZenML's SageMaker orchestrator: what its steps get, and the stack that deploys what it trained."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from hls_foundry.errors import ConfigError
from stacks.definition import Component, Resources, StackDefinition, StepSettings, nearest

SDK_CONFIG = Path(__file__).with_name("sagemaker-sdk.yaml")
HOME_IN_JOBS = "/tmp/hls-foundry"
"""HLS_FOUNDRY_HOME of the jobs: SageMaker keeps /tmp on the job's volume, and the image may be read-only."""

ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+")
REGISTRY = re.compile(
    r"[0-9]{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/[^\s:@]+(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})"
)


def on_sagemaker(definition: StackDefinition) -> bool:
    """Whether the stack's training runs as SageMaker jobs."""
    return any(part.type == "orchestrator" and part.flavor == "sagemaker" for part in definition.components)


def quiet_sdk() -> None:
    """Keep the SageMaker SDK from reporting its use, and from advertising; call before it is imported. What is set stays.

    As the administrator's defaults, so that those of the user in ~/.config/sagemaker still count.
    """
    os.environ.setdefault("SAGEMAKER_ADMIN_CONFIG_OVERRIDE", str(SDK_CONFIG))
    os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")
    logging.getLogger("sagemaker.config").setLevel(logging.WARNING)  # tells at standard output which files it read


def sagemaker_settings(definition: StackDefinition, region: str) -> dict[str, dict[str, Any]]:
    """What the steps that the stack names get of SageMaker, and under "" what all others do. Imports ZenML and the SageMaker SDK.

    `region` is that of the jobs, which have no profile to find it in.
    Raises ConfigError, one line with file, key and reason, for what SageMaker's orchestrator does not take.
    """
    settings, where = definition.settings, str(definition.file)
    if not REGISTRY.fullmatch(settings.image or ""):
        raise ConfigError(f"{where}: 'settings.image': give an image in ECR with its tag or digest, not '{settings.image or ''}'")
    role = str(execution_role(definition))
    if not ROLE.fullmatch(role):
        raise ConfigError(f"{where}: orchestrator's 'execution_role': give the role's ARN (arn:aws:iam::…:role/…), not '{role}'")
    _refuse_slurm(settings.resources, settings.slurm, f"{where}: 'settings")
    _check(settings.sagemaker, f"{where}: 'settings.sagemaker")
    quiet = {"GX_ANALYTICS_ENABLED": "false", "SAGEMAKER_SUPPRESS_V2_WARNING": "1", "ZENML_LOGGING_COLORS_DISABLED": "true"}
    own = {"HLS_FOUNDRY_HOME": HOME_IN_JOBS, "AWS_DEFAULT_REGION": region, **quiet}
    found = {}
    for name in ("", *settings.steps):
        step = settings.steps.get(name, StepSettings())
        _refuse_slurm(step.resources, step.slurm, f"{where}: 'settings.steps.{name}")
        merged = settings.step(name).sagemaker
        _check(merged, f"{where}: 'settings.steps.{name}.sagemaker")
        found[name] = {**merged, "environment": {**own, **merged.get("environment", {})}}
    return found


def execution_role(definition: StackDefinition) -> object:
    """The role that the orchestrator's configuration names for its jobs."""
    return next((part.configuration.get("execution_role", "") for part in definition.components if part.flavor == "sagemaker"), "")


def deploying(definition: StackDefinition) -> StackDefinition:
    """The stack that deploys: steps run in this process, with the same artifact store."""
    store = next(part for part in definition.components if part.type == "artifact_store")
    store = store.model_copy(update={"name": store.name or f"hls-{definition.name}-artifact-store"})
    here = Component(type="orchestrator", flavor="local")
    return definition.model_copy(update={"name": f"{definition.name}-deploy", "components": (here, store)})


def _refuse_slurm(resources: Resources, slurm: dict[str, Any], place: str) -> None:
    if slurm:
        raise ConfigError(f"{place}.slurm': is for a Slurm cluster: on SageMaker give 'sagemaker' settings")
    if resources != Resources():
        raise ConfigError(f"{place}.resources': SageMaker's instances come in sizes: give sagemaker.instance_type instead")


def _check(given: dict[str, Any], place: str) -> None:
    from pydantic import ValidationError
    from zenml.integrations.aws.flavors.sagemaker_orchestrator_flavor import SagemakerOrchestratorSettings

    known = list(SagemakerOrchestratorSettings.model_fields)
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"{place}.{unknown[0]}': unknown key: {nearest(unknown[0], known)}")
    try:
        SagemakerOrchestratorSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f".{part}" for part in first["loc"])
        raise ConfigError(f"{place}{key}': {' '.join(first['msg'].removeprefix('Value error, ').split())}") from None
