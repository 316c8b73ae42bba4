"""Results as JSON and back: data classes, tables, arrays, paths and dates, each marked with its kind.

No pickle, so reading runs no code.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import zlib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from pydantic import BaseModel
from rasterio.crs import CRS

OURS = ("hls_foundry.", "steps.")
KIND = "__kind__"


def encode(value: Any) -> Any:
    """`value` as what json.dumps takes. NaN stays NaN (Python's JSON reads it back). Raises TypeError for what it does not know."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, Affine):
        return {KIND: "affine", "coefficients": list(value)[:6]}
    if isinstance(value, CRS):
        return {KIND: "crs", "wkt": value.to_wkt()}
    if isinstance(value, list | tuple):
        items = [encode(item) for item in value]
        return items if isinstance(value, list) else {KIND: "tuple", "items": items}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, pd.DataFrame):
        rows = [[encode(cell) for cell in row] for row in value.itertuples(index=False, name=None)]
        return {KIND: "table", "columns": [str(name) for name in value.columns], "rows": rows}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes())).decode()
        return {KIND: "array", "dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    if isinstance(value, Path | date):
        return {KIND: "path" if isinstance(value, Path) else "date", "text": str(value)}
    if isinstance(value, BaseModel):
        return {KIND: _name(value), "fields": value.model_dump(mode="json")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {KIND: _name(value), "fields": {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}}
    raise TypeError(f"{type(value).__name__} is not a kind of result that is stored")


def decode(value: Any) -> Any:
    """The inverse of `encode`. Raises TypeError for a kind that is not a data class or model of this project."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind is None:
        return {key: decode(item) for key, item in value.items()}
    if kind == "tuple":
        return tuple(decode(item) for item in value["items"])
    if kind == "table":
        return pd.DataFrame([[decode(cell) for cell in row] for row in value["rows"]], columns=value["columns"])
    if kind == "array":
        return np.frombuffer(zlib.decompress(base64.b64decode(value["data"])), dtype=value["dtype"]).reshape(value["shape"]).copy()
    if kind == "affine":
        return Affine(*value["coefficients"])
    if kind == "crs":
        return CRS.from_wkt(value["wkt"])
    if kind in ("path", "date"):
        return Path(value["text"]) if kind == "path" else date.fromisoformat(value["text"])
    return _build(kind, value["fields"])


def _build(kind: str, fields: dict[str, Any]) -> Any:
    module, _, name = kind.partition(":")
    chosen = getattr(importlib.import_module(module), name, None) if module.startswith(OURS) else None
    if isinstance(chosen, type) and issubclass(chosen, BaseModel):
        return chosen.model_validate(fields)
    if isinstance(chosen, type) and dataclasses.is_dataclass(chosen):
        return chosen(**{key: decode(item) for key, item in fields.items()})
    raise TypeError(f"stored result of unknown kind '{kind}'")


def _name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"
