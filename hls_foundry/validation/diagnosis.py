"""Names the mistakes that pipelines make, chip by chip, from the inventory's statistics: wrong scale, 8-bit previews, wrong places."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import DataConfig, ValidationConfig

KNOWN_LABELS = frozenset({-1, 0, 1, 255})

TOO_BRIGHT = 3.0
"""Reflectance of the brightest band's 98 % quantile above which the scale is wrong: sun glint and cloud in TOA data reach 2."""
TOO_DARK = 0.002
"""The same from below: the darkest lakes still have 0.01 in blue."""
PERCENT = 120.0
"""Above TOO_BRIGHT and up to here the values are percent, beyond they are reflectance × 10000."""


def diagnose(table: pd.DataFrame, data: DataConfig, config: ValidationConfig) -> pd.DataFrame:
    """The inventory with the columns that the suite judges beside its own; the input is left as it is.

    Texts (None = fine): `missing_file`, `unreadable`, `scale_problem`, `preview_problem`, `place_problem`, `grid_difference`,
    `unknown_labels`. Numbers: `lowest_reflectance`, `highest_reflectance` (over the bands' 2 % and 98 % quantiles) with
    `lowest_band`, `highest_band`; `has_positive` (0 or 1). `usable`: statistics of this chip may speak for the data set.
    Columns of files that were not read are emptied, so that one cause has one name.
    """
    judged = table.copy()
    rows = [_findings(row, data, config) for row in table.to_dict("records")]
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        judged[name] = pd.Series(
            values, index=table.index, dtype="float64" if name in NUMBERS else "bool" if name == "usable" else "object"
        )
    unread = judged["digest"] == ""
    judged["digest"] = judged["digest"].mask(unread, None)
    judged["dtype"] = judged["dtype"].mask(unread | judged["preview_problem"].notna(), None)
    for column in ("count", "width", "height"):
        judged[column] = judged[column].astype("float64").mask(unread)
    return judged


NUMBERS = ("lowest_reflectance", "highest_reflectance", "has_positive")


def _findings(row: dict[Any, Any], data: DataConfig, config: ValidationConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "missing_file": missing_file(row),
        "unreadable": unreadable(row),
        "preview_problem": preview_problem(row, data, config.dtypes),
        "scale_problem": None,
        "place_problem": None,
        "grid_difference": None,
        "unknown_labels": unknown_labels(row),
        "lowest_reflectance": np.nan,
        "highest_reflectance": np.nan,
        "lowest_band": "",
        "highest_band": "",
        "has_positive": np.nan,
    }
    if row["grid_problem"]:
        elsewhere = "places differ" in row["grid_problem"]
        found["place_problem" if elsewhere else "grid_difference"] = row["grid_problem"]
    if not found["preview_problem"]:
        found["scale_problem"] = scale_problem(row, data)
    found["usable"] = bool(row["digest"]) and np.isfinite(row["red_q50"]) and not (found["preview_problem"] or found["scale_problem"])
    if found["usable"]:
        low, high = quantiles(row, "q02"), quantiles(row, "q98")
        found |= {"lowest_reflectance": float(low.min()), "highest_reflectance": float(high.max())}
        found |= {"lowest_band": BANDS[int(low.argmin())], "highest_band": BANDS[int(high.argmax())]}
    if np.isfinite(row["positive_share"]):
        found["has_positive"] = float(row["positive_share"] > 0)
    return found


def quantiles(row: dict[Any, Any], what: str) -> npt.NDArray[np.float64]:
    """The six bands' statistic `what` of one row: float64 (6,)."""
    return np.array([row[f"{band}_{what}"] for band in BANDS], dtype=np.float64)


def missing_file(row: dict[Any, Any]) -> str | None:
    """Which half of the pair is not there."""
    if not row["image"]:
        return "the mask has no image"
    return None if row["mask"] else "the image has no mask"


def unreadable(row: dict[Any, Any]) -> str | None:
    """The reader's own line, for an image or a mask that it could not read as what it should be."""
    image_failed = bool(row["image"]) and not row["digest"]
    mask_failed = bool(row["mask"]) and not row["mask_digest"] and not unknown_labels(row)
    return str(row["error"]) if image_failed or mask_failed else None


def unknown_labels(row: dict[Any, Any]) -> str | None:
    """The mask's values that are no label. A value that the file itself declares as nodata has been accepted by the reader."""
    if row["mask_digest"]:
        return None
    strange = [value for value in row["mask_values"] if value not in KNOWN_LABELS]
    return ", ".join(f"{value:g}" for value in strange[:5]) + (" …" if len(strange) > 5 else "") if strange else None


def file_scale(row: dict[Any, Any], data: DataConfig) -> float:
    """The factor the reader applied: file value × scale = reflectance."""
    if data.scale != "auto":
        return data.scale
    return 1e-4 if np.dtype(row["dtype"] or "float32").kind in "iu" else 1.0


def preview_problem(row: dict[Any, Any], data: DataConfig, dtypes: tuple[str, ...]) -> str | None:
    """An 8-bit picture instead of reflectance: by its type, by values 0–255, or by values that are 255ths."""
    if row["dtype"] in ("uint8", "int8") and row["dtype"] not in dtypes:
        return f"8-bit preview: the file holds {row['dtype']} values"
    high = quantiles(row, "q98")
    if not np.isfinite(high).all():
        return None
    numbers = np.concatenate([quantiles(row, what) for what in ("q02", "q50", "q98")])
    in_file = numbers / file_scale(row, data)
    # A preview is stretched: every band reaches far up in 0–255. Reflectance × 10000 this low in all bands exists in no landscape.
    if (in_file[12:] >= 60).all() and in_file.max() <= 255.5 and in_file.min() >= 0 and _whole(in_file):
        return "8-bit preview: all values are whole numbers from 0 to 255"
    if numbers.min() >= 0 and numbers.max() <= 1 and not _whole(numbers * 1e4) and _whole(numbers * 255):
        return "8-bit preview divided by 255: all values are 255ths"
    return None


def _whole(numbers: npt.NDArray[np.float64]) -> bool:
    # Two of the eighteen quantiles may fall between two values.
    return int((np.abs(numbers - np.round(numbers)) < 0.01).sum()) >= len(numbers) - 2 and len(np.unique(np.round(numbers))) > 3


def scale_problem(row: dict[Any, Any], data: DataConfig) -> str | None:
    """Values that are no reflectance (0–1), with the data.scale that would make them so."""
    high = quantiles(row, "q98")
    if not np.isfinite(high).all():
        return None
    brightest, scale = float(high.max()), file_scale(row, data)
    values = f"values reach {brightest:.3g} where reflectance is 0–1"
    if brightest > PERCENT:
        return f"wrong scale: {values}, as reflectance × 10000 does; set data.scale: {scale * 1e-4:g}"
    if brightest > TOO_BRIGHT:
        return f"wrong scale: {values}, as percent do; set data.scale: {scale * 1e-2:g}"
    if 0 < brightest < TOO_DARK:
        return f"wrong scale: {values}, as after dividing by 10000 twice; set data.scale: {scale * 1e4:g}"
    return None
