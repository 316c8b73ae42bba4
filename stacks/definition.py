"""Stack files: `stacks/NAME.yaml` read into typed data, with `${VAR}` and `${VAR:-default}` filled from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hls_foundry.endpoints.settings import EndpointSettings, PublishSettings
from hls_foundry.errors import ConfigError

FOLDER = Path(__file__).parent
LATER = {"hpc": "the Slurm cluster (part 2)", "aws": "SageMaker (part 3)", "aws-managed": "SageMaker's own orchestrator (part 3)"}
"""Stacks that the design names and that this version does not bring yet."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Component(BaseModel):
    """One component as ZenML registers it; without a name it is called `hls-STACK-TYPE`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["orchestrator", "artifact_store", "container_registry", "image_builder", "step_operator"]
    flavor: str
    name: str | None = None
    configuration: dict[str, Any] = Field(default_factory=dict)


class StackDefinition(BaseModel):
    """A stack file: what ZenML registers, what steps get, where deploy and publish go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    file: Path
    components: tuple[Component, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    endpoint: EndpointSettings | None = None
    publish: PublishSettings


def known_stacks(folder: Path = FOLDER) -> list[str]:
    """Names of the stack files in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_stack(name: str, environment: Mapping[str, str], folder: Path = FOLDER) -> StackDefinition:
    """Read `folder`/NAME.yaml.

    Raises ConfigError, one line, for an unknown stack, a variable that is not set (named, with the file), and unknown or wrong keys.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        if name in LATER:
            raise ConfigError(f"stack '{name}' needs {LATER[name]}, which this version does not bring yet: use --stack local")
        raise ConfigError(f"no stack '{name}': {file} does not exist (known stacks: {', '.join(known_stacks(folder))})")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold a mapping with components, settings, endpoint and publish")
    try:
        return StackDefinition.model_validate({**_fill(content, environment, file), "name": name, "file": file})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{file}: '{key}': {problem}") from None


def _fill(value: Any, environment: Mapping[str, str], file: Path) -> Any:
    """Fill variables in the strings of `value`, never in its structure, so that a value cannot add keys."""
    if isinstance(value, dict):
        return {key: _fill(item, environment, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, environment, file) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        filled = environment.get(name, default)
        if filled is None:
            raise ConfigError(f"{file} needs the environment variable {name}, which is not set: export {name}=… and run again")
        return filled

    return _VARIABLE.sub(replace, value)
