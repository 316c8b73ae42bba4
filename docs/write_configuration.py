"""Write docs/configuration.md and docs/hpc-settings.md from the types in the code, so that the pages cannot lag behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hls_foundry.config import FoundryConfig

LEAD = """# Configuration

One YAML file a task in `configs/`; this page is made from the code by `make docs`.
Unknown keys and values out of range are refused by name.

Layers, later ones win: `configs/TASK.yaml`, then `--config FILE` (a file with a `task:` mapping stands alone, one without is an overlay, as
`configs/demo.yaml` is), then `--data SOURCE`, then each `--set KEY=VALUE`. Without `--config`, synthetic chips use `demo.yaml` and
other data the task's recipe.
"""

SLURM_LEAD = """# Slurm settings

Every key that a job on Slurm knows; this page is made from the code by `make docs`. [hpc.md](hpc.md) says how they are used.
Unknown keys are refused with the nearest known one, values that Slurm would misread with a line that says why.
"""
STEP_LEAD = """
## Of a step

`settings.slurm` of a stack or site file is for all steps, `settings.steps.NAME.slurm` for one; in Python, `SlurmSettings` in a step's
`settings={"orchestrator": …}`. CPUs, memory and GPUs of each node can be said with ZenML's `resources` as well; what is said here wins.
"""
CONTAINER_LEAD = """
## Of a container

The keys of `container`; [hpc.md](hpc.md) says how a step gets into one. Paths are absolute, on the cluster.
"""
CLUSTER_LEAD = """
## Of a cluster

The orchestrator's `configuration` in a stack or site file, or options of `zenml orchestrator register --flavor=slurm`.
It takes the keys of a step too, as defaults for all steps.
"""


def page() -> str:
    """The text of configuration.md."""
    parts = [LEAD]
    for name, field in FoundryConfig.model_fields.items():
        part = field.annotation
        assert isinstance(part, type)
        assert issubclass(part, BaseModel)
        parts.append(f"\n## `{name}`\n\n{(part.__doc__ or '').strip()}\n{_table(part, part.model_fields)}")
    return "".join(parts)


def slurm_page() -> str:
    """The text of hpc-settings.md."""
    from stacks.slurm.settings import ContainerSettings, SlurmOrchestratorConfig, SlurmSettings

    own = [key for key in SlurmOrchestratorConfig.model_fields if key not in SlurmSettings.model_fields]
    step, cluster = _table(SlurmSettings, SlurmSettings.model_fields), _table(SlurmOrchestratorConfig, own)
    container = _table(ContainerSettings, ContainerSettings.model_fields)
    return f"{SLURM_LEAD}{STEP_LEAD}{step}{CONTAINER_LEAD}{container}{CLUSTER_LEAD}{cluster}"


def _table(model: type[BaseModel], keys: Iterable[str]) -> str:
    """One row a key of `model`."""
    schema = model.model_json_schema()
    rows = ["\n| key | type | default | meaning |\n|---|---|---|---|\n"]
    for key in keys:
        item = model.model_fields[key]
        value = item.get_default(call_default_factory=True)
        default = "required" if item.is_required() else f"`{_plain(value)}`"
        meaning = (item.description or "").replace("|", "\\|")
        rows.append(f"| `{key}` | {_kind(schema['properties'][key], schema)} | {default} | {meaning} |\n")
    return "".join(rows)


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.model_dump(include={"runtime"}).items())
    return (
        "[" + ", ".join(map(str, value)) + "]"
        if isinstance(value, tuple | list)
        else str(value).lower()
        if value in (True, False, None)
        else str(value)
    )


def _kind(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """A property's type in words: choices, ranges, lists."""
    if "$ref" in schema:
        inner = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        return "mapping: " + ", ".join(f"`{key}`" for key in inner["properties"])
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_kind(option, root) for option in schema["anyOf"])
    if schema.get("type") == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        count = schema.get("minItems")
        return f"list of {f'{count} ' if count and count == schema.get('maxItems') else ''}{_kind(inner, root)}"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([schema.get("type", "any").replace("null", "none").replace("object", "mapping"), *bounds])


if __name__ == "__main__":
    for name, text in (("configuration", page()), ("hpc-settings", slurm_page())):
        (Path(__file__).parent / f"{name}.md").write_text(text, encoding="utf-8")
