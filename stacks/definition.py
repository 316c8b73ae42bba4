"""Stack files: `stacks/NAME.yaml`, with a site's overlay on it where the stack has sites, read into typed data.

`${VAR}`, `${VAR:-default}`, `${VAR:?what to do when it is missing}` and `${VAR%%/*}` (up to the first slash) are filled from the
environment, as a shell would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hls_foundry.config import FoundryConfig
from hls_foundry.endpoints.settings import TARGETS, EndpointSettings, PublishSettings
from hls_foundry.errors import ConfigError

FOLDER = Path(__file__).parent
REHEARSAL = "HLS_REHEARSAL_SLURM_CONF"
"""Environment variable with the slurm.conf of a rehearsal cluster that is up; it makes `rehearsal` the site where none is named."""

NOT_IN_FILES = ("name", "file", "site", "site_file")
"""Fields of a definition that follow from which files it was read from."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([-?])([^}]*)|(%%/\*))?\}")


class Part(BaseModel):
    """One part of a stack file; rejects keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(Part):
    """One component as ZenML registers it; without a name it is called `hls-STACK-TYPE`."""

    type: Literal["orchestrator", "artifact_store", "container_registry", "image_builder", "step_operator"]
    flavor: str
    name: str | None = None
    configuration: dict[str, Any] = Field(default_factory=dict)


class Resources(Part):
    """What a step may use on each of its nodes; None leaves it to the cluster."""

    cpu_count: Annotated[float, Field(gt=0)] | None = None
    memory: Annotated[str, Field(pattern=r"^[0-9]+([KMGTP]i?B)$")] | None = Field(None, description="such as 8GB or 8GiB")
    gpu_count: Annotated[int, Field(ge=0)] | None = None


class Retry(Part):
    """How often ZenML tries a step again that failed (not one that Slurm preempted or ended, which is restarted)."""

    max_retries: Annotated[int, Field(ge=0)] = 0
    delay: Annotated[int, Field(ge=0)] = Field(0, description="seconds before the first")
    backoff: Annotated[int, Field(ge=1)] = Field(1, description="each wait is this many times the one before")


class StepSettings(Part):
    """What one step gets. The keys of `slurm` and `sagemaker` are those of the orchestrators' settings, which are checked where
    ZenML is at hand: by `slurm_requests` and `sagemaker_settings`."""

    resources: Resources = Resources()
    slurm: dict[str, Any] = Field(default_factory=dict)
    sagemaker: dict[str, Any] = Field(default_factory=dict)
    retry: Retry | None = None


class StackSettings(Part):
    """What every step gets, and what some get instead. `image`: the container that SageMaker's jobs run in."""

    image: str | None = None
    resources: Resources = Resources()
    slurm: dict[str, Any] = Field(default_factory=dict)
    sagemaker: dict[str, Any] = Field(default_factory=dict)
    steps: dict[str, StepSettings] = Field(default_factory=dict)

    def step(self, name: str) -> StepSettings:
        """The defaults with what step `name` changes."""
        own = self.steps.get(name, StepSettings())
        resources = {**self.resources.model_dump(), **own.resources.model_dump(exclude_unset=True)}
        slurm, sagemaker = merge(self.slurm, own.slurm), merge(self.sagemaker, own.sagemaker)
        return StepSettings(resources=Resources(**resources), slurm=slurm, sagemaker=sagemaker, retry=own.retry)


class StackDefinition(Part):
    """A stack file: what ZenML registers, what steps get, where deploy and publish go."""

    name: str
    file: Path
    site: str | None = None
    site_file: Path | None = None
    sites: bool = Field(False, description="whether stacks/sites/*.yaml are overlays on this file")
    components: tuple[Component, ...]
    settings: StackSettings = StackSettings()
    overrides: dict[str, Any] = Field(default_factory=dict, description="configuration keys such as training.processes, below --set")
    endpoint: EndpointSettings | None = None
    publish: PublishSettings

    def config_overrides(self) -> tuple[str, ...]:
        """`overrides` as KEY=VALUE; load_config takes them before those of --set."""
        return tuple(f"{key}={_yaml_value(value)}" for key, value in self.overrides.items())


def known_stacks(folder: Path = FOLDER) -> list[str]:
    """Names of the stack files in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def known_sites(folder: Path = FOLDER) -> list[str]:
    """Names of the site files in `folder`/sites."""
    return known_stacks(folder / "sites")


def load_stack(name: str, environment: Mapping[str, str], folder: Path = FOLDER, site: str | None = None) -> StackDefinition:
    """Read `folder`/NAME.yaml, and on it `folder`/sites/SITE.yaml where the stack has sites.

    A site's file holds only what differs: mappings are merged, components by their type, everything else is replaced. Without
    `site` it is `rehearsal` where a rehearsal cluster is up (HLS_REHEARSAL_SLURM_CONF), else `cpu`.

    Raises ConfigError, one line, for an unknown stack or site, a variable that is not set (named, with the file), and unknown or
    wrong keys.
    """
    file = folder / f"{name}.yaml"
    if name not in known_stacks(folder):
        raise ConfigError(f"no stack '{name}': {file} does not exist (known stacks: {', '.join(known_stacks(folder))})")
    values = _fill(_read(file), environment, file)
    overlay: dict[str, Any] = {}
    chosen: dict[str, Any] = {"name": name, "file": file}
    if values.get("sites") is True:
        site = site or ("rehearsal" if environment.get(REHEARSAL) else "cpu")
        site_file = folder / "sites" / f"{site}.yaml"
        if site not in known_sites(folder):
            raise ConfigError(f"no site '{site}': {site_file} does not exist (known sites: {', '.join(known_sites(folder))})")
        overlay = _fill(_read(site_file), environment, site_file)
        components = _merge_components(values.get("components"), overlay.get("components"))
        values = {**merge(values, overlay), "components": components}
        chosen |= {"site": site, "site_file": site_file}
    elif site is not None:
        raise ConfigError(f"stack '{name}' has no sites: leave out --site {site}, or choose a stack that runs on a cluster (--stack hpc)")
    try:
        definition = StackDefinition.model_validate({**_without_empty(values), **chosen})
    except ValidationError as error:
        raise ConfigError(_one_line(error, overlay, chosen)) from None
    if not any(part.flavor == "sagemaker" for part in definition.components) and (key := _for_sagemaker(definition.settings)):
        raise ConfigError(f"{file}: '{key}' is for SageMaker's orchestrator, which this stack has not: leave it out")
    for key in definition.overrides:
        where = chosen["site_file"] if key in (overlay.get("overrides") or {}) else file
        _check_configuration_key(key, where)
    return definition


def _for_sagemaker(settings: StackSettings) -> str | None:
    """The first key that no other orchestrator takes."""
    steps = [f"settings.steps.{name}.sagemaker" for name, step in settings.steps.items() if step.sagemaker]
    return "settings.image" if settings.image else "settings.sagemaker" if settings.sagemaker else next(iter(steps), None)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` changes: mappings are merged, other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nearest(name: str, known: list[str]) -> str:
    """What `name` may have meant, for the end of a line about it."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(sorted(known))}"


class _Loader(yaml.SafeLoader):
    """Reads 24:00:00 as the text it is; YAML 1.1 makes it the number 86400, which Slurm would take for minutes."""

    def construct_integer(self, node: yaml.ScalarNode) -> int | str:
        return node.value if ":" in node.value else int(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): mend it or take the one from the repository") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold a mapping with components, settings, endpoint and publish")
    for key in NOT_IN_FILES:
        if key in content:
            raise ConfigError(f"{file}: '{key}': unknown key: {nearest(key, _known_keys([]))}")
    return content


def _fill(value: Any, environment: Mapping[str, str], file: Path) -> Any:
    """Fill variables in the strings of `value`, never in its structure, so that a value cannot add keys."""
    if isinstance(value, dict):
        return {key: _fill(item, environment, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, environment, file) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, kind, text, host = match.groups()
        filled = environment.get(name, text if kind == "-" else None)
        if filled is None or (kind == "?" and not filled):
            advice = text or f"export {name}=… and run again"
            raise ConfigError(f"{file} needs the environment variable {name}, which is not set: {advice}")
        return filled.partition("/")[0] if host else filled

    return _VARIABLE.sub(replace, value)


def _merge_components(below: Any, above: Any) -> Any:
    """Components are told apart by their type; a site changes parts of one, or adds one."""
    if not isinstance(below, list) or not isinstance(above, list):
        return below if above is None else above
    merged = {part["type"]: part for part in below if isinstance(part, dict) and "type" in part}
    for part in above:
        if not (isinstance(part, dict) and isinstance(part.get("type"), str)):
            return above  # pydantic names what is wrong with it
        merged[part["type"]] = merge(merged.get(part["type"], {}), part)
    return list(merged.values())


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Without the keys of components, settings and overrides that are empty text: a variable left empty means unset."""

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: prune(item) for key, item in value.items() if item != ""}
        return [prune(item) for item in value] if isinstance(value, list) else value

    return {key: prune(value) if key in ("components", "settings", "overrides") else value for key, value in values.items()}


def _yaml_value(value: Any) -> str:
    """A value as --set takes it. A number that came out of a variable is a number."""
    if isinstance(value, str):
        read = yaml.safe_load(value) if not set(value) & set("{}[]:#&*!|>'\"%@`,") else value
        return value if isinstance(read, int | float) else json.dumps(value)
    return json.dumps(value)


def _one_line(error: ValidationError, overlay: dict[str, Any], chosen: Mapping[str, Any]) -> str:
    """The first problem as one line with the file that says it, the key, and for an unknown key the nearest known one."""
    first = error.errors()[0]
    steps = [part for place, part in enumerate(first["loc"]) if not (place == 1 and part in TARGETS and first["loc"][0] == "endpoint")]
    places = [part for part in steps if isinstance(part, str)]
    file = chosen["site_file"] if _says(overlay, places) else chosen["file"]
    key = ".".join(str(part) for part in steps)
    if first["type"] != "extra_forbidden":
        return f"{file}: '{key}': {first['msg'].removeprefix('Value error, ')}"
    known = [str(part) for part in first["loc"] if isinstance(part, str)]
    return f"{file}: '{key}': unknown key: {nearest(places[-1], _known_keys(known[:-1]))}"


def _says(values: Any, places: list[str]) -> bool:
    """Whether `values` has something at `places`, in any item where there is a list on the way."""
    if isinstance(values, list):
        return any(_says(item, places) for item in values)
    if not places or not isinstance(values, dict):
        return not places
    return places[0] in values and _says(values[places[0]], places[1:])


def _known_keys(places: list[str], model: type[BaseModel] = StackDefinition) -> list[str]:
    """The keys that a stack file may have at `places`."""
    if not places:
        return [name for name in model.model_fields if not (model is StackDefinition and name in NOT_IN_FILES)]
    field = model.model_fields.get(places[0])
    target = places[1] if places[0] == "endpoint" and len(places) > 1 else None
    inner = None if field is None else _model_in(field.annotation, target)
    if target in TARGETS:
        places = places[1:]
    if field is None or inner is None:
        return _known_keys(places[1:], model)  # the name of a step, within settings.steps
    return _known_keys(places[1:], inner)


def _model_in(annotation: Any, target: str | None = None) -> type[BaseModel] | None:
    """The model within list[…], dict[str, …] or … | None; of several the one whose field `target` has that default."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if target is None or annotation.model_fields["target"].default == target else None
    return next((found for part in get_args(annotation) if (found := _model_in(part, target))), None)


def _check_configuration_key(key: str, file: Path) -> None:
    """Raises ConfigError unless `key`, such as training.processes, is one of the configuration's."""
    model: type[BaseModel] | None = FoundryConfig
    for part in key.split("."):
        fields = {} if model is None else model.model_fields
        if part not in fields:
            hint = nearest(part, list(fields)) if fields else "it has no keys below it"
            raise ConfigError(f"{file}: 'overrides.{key}': unknown configuration key: {hint}")
        model = _model_in(fields[part].annotation)
