"""Write docs/configuration.md from the types in hls_foundry/config.py, so that the page cannot lag behind the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hls_foundry.config import FoundryConfig

LEAD = """# Configuration

One YAML file a task in `configs/`; this page is made from the code by `make docs`.
Unknown keys and values out of range are refused by name.

Layers, later ones win: `configs/TASK.yaml`, then `--config FILE` (a file with a `task:` mapping stands alone, one without is an overlay, as
`configs/demo.yaml` is), then `--data SOURCE`, then each `--set KEY=VALUE`. Without `--config`, synthetic chips use `demo.yaml` and
other data the task's recipe.
"""


def page() -> str:
    """The page's text."""
    parts = [LEAD]
    for name, field in FoundryConfig.model_fields.items():
        part = field.annotation
        assert isinstance(part, type)
        assert issubclass(part, BaseModel)
        parts.append(f"\n## `{name}`\n\n{(part.__doc__ or '').strip()}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        schema = part.model_json_schema()
        for key, item in part.model_fields.items():
            default = "required" if item.default is PydanticUndefined else f"`{_plain(item.default)}`"
            parts.append(f"| `{key}` | {_kind(schema['properties'][key], schema)} | {default} | {item.description or ''} |\n")
    return "".join(parts)


def _plain(value: Any) -> str:
    return (
        "[" + ", ".join(map(str, value)) + "]"
        if isinstance(value, tuple)
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
    return " ".join([schema.get("type", "any").replace("null", "none"), *bounds])


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
