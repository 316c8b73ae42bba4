"""The suite: which expectation (Great Expectations) judges which column, with which threshold, and what to do when it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import TaskConfig, ValidationConfig

Row = dict[Any, Any]


@dataclass(frozen=True)
class Check:
    """One expectation on one column. `reason` says of a bad row, in words, what is wrong with it."""

    name: str
    column: str
    expectation: str
    parameters: dict[str, Any]
    threshold: str
    advice: str
    reason: Callable[[Row], str] = field(default=lambda row: "")
    level: Literal["chip", "data set"] = "chip"
    systematic: bool = False
    """A mistake of the pipeline, not of a chip: where most chips have it, none may pass by quarantining the others."""


def build_suite(task: TaskConfig, config: ValidationConfig, *, split: bool) -> list[Check]:
    """All checks, causes before their consequences; that for leakage only where chips are `split` already."""
    return [*_files(config), *_places(config), *_pixels(config), *_labels(config), *_data_set(task, config, split)]


def _null(name: str, column: str, threshold: str, advice: str, *, say: str = "{}", systematic: bool = False) -> Check:
    """A check on a text column of diagnosis.py, where no text means no problem."""
    return Check(
        name, column, "ExpectColumnValuesToBeNull", {}, threshold, advice, lambda row: say.format(row[column]), systematic=systematic
    )


def _share(name: str, column: str, low: float, high: float, what: str, advice: str) -> Check:
    def reason(row: Row) -> str:
        return f"{what} on {100 * row[column]:.1f} % of the pixels ({allowed} allowed)"

    allowed = f"{100 * low:g}–{100 * high:g} %" if high else "none"
    limits = {"min_value": low, "max_value": high}
    return Check(name, column, "ExpectColumnValuesToBeBetween", limits, allowed, advice, reason)


def _between(name: str, column: str, low: float | None, high: float | None, unit: str, advice: str) -> Check:
    bounds = (
        f"{low:g}–{high:g}" if low is not None and high is not None else f"at least {low:g}" if low is not None else f"at most {high:g}"
    )
    threshold = f"{bounds}{unit and f' {unit}'}"

    def reason(row: Row) -> str:
        return f"{name}: {row[column]:g}{unit and f' {unit}'} ({threshold} allowed)"

    return Check(name, column, "ExpectColumnValuesToBeBetween", {"min_value": low, "max_value": high}, threshold, advice, reason)


def _files(config: ValidationConfig) -> list[Check]:
    dtypes = ", ".join(config.dtypes)
    return [
        _null("pairs are complete", "missing_file", "an image and a mask", "add the missing file, or remove the one that stands alone"),
        _null(
            "files are readable",
            "unreadable",
            "sound GeoTIFFs with the six bands",
            "fetch or write the file again; set data.bands for other bands",
        ),
        _null(
            "no 8-bit previews",
            "preview_problem",
            "surface reflectance",
            "export reflectance (int16 × 10000 or float), not the picture",
            systematic=True,
        ),
        Check(
            "dtype of the image",
            "dtype",
            "ExpectColumnValuesToBeInSet",
            {"value_set": list(config.dtypes)},
            dtypes,
            "write the image as one of these, or extend validation.dtypes",
            lambda row: f"dtype {row['dtype']} ({dtypes} allowed)",
        ),
        _between("number of bands", "count", len(BANDS), None, "bands", "write all six HLS bands into the image"),
        _between(
            "width",
            "width",
            config.min_size,
            config.max_size,
            "pixels",
            "cut chips of another size, or set validation.min_size and max_size",
        ),
        _between(
            "height",
            "height",
            config.min_size,
            config.max_size,
            "pixels",
            "cut chips of another size, or set validation.min_size and max_size",
        ),
    ]


def _places(config: ValidationConfig) -> list[Check]:
    return [
        _null(
            "image and mask are of one place",
            "place_problem",
            "the same place to half a pixel",
            "pair the mask with the image of its own place",
            say="image and mask are of different places: {}",
        ),
        _null(
            "image and mask share a grid",
            "grid_difference",
            "the same size and CRS",
            "warp the mask onto the image's grid (nearest neighbour)",
            say="image and mask have different grids: {}",
        ),
        _between("resolution", "resolution_m", *config.resolution_m, "m", "resample the chip, or set validation.resolution_m"),
        Check(
            "no duplicates",
            "digest",
            "ExpectColumnValuesToBeUnique",
            {},
            "every image once",
            "remove the copies",
            lambda row: f"the same pixels as {row['duplicate_of']}",
        ),
    ]


def _pixels(config: ValidationConfig) -> list[Check]:
    low, high = config.reflectance

    def reason(which: str, column: str) -> Callable[[Row], str]:
        return lambda row: f"{row[f'{which}_band']} has reflectance {row[column]:.2f} ({low:g}–{high:g} allowed)"

    range_advice = "check data.scale and data.nodata, or set validation.reflectance"
    return [
        _null("scale of reflectance", "scale_problem", "reflectance 0–1 after data.scale", "set data.scale as said", systematic=True),
        Check(
            "lowest reflectance",
            "lowest_reflectance",
            "ExpectColumnValuesToBeBetween",
            {"min_value": low},
            f"2 % quantile of every band from {low:g}",
            range_advice,
            reason("lowest", "lowest_reflectance"),
        ),
        Check(
            "highest reflectance",
            "highest_reflectance",
            "ExpectColumnValuesToBeBetween",
            {"max_value": high},
            f"98 % quantile of every band up to {high:g}",
            range_advice,
            reason("highest", "highest_reflectance"),
        ),
        _share(
            "no NaN or infinity", "nonfinite_share", 0, 0, "NaN or infinite without being nodata", "write the file's nodata value there"
        ),
        _share(
            "share of nodata", "nodata_share", 0, config.max_nodata_share, "no data", "drop the chip, or raise validation.max_nodata_share"
        ),
        _share("share of cloud", "cloud_share", 0, config.max_cloud_share, "cloud", "drop the chip, or raise validation.max_cloud_share"),
    ]


def _labels(config: ValidationConfig) -> list[Check]:
    return [
        _null(
            "label values",
            "unknown_labels",
            "0, 1, and −1 or 255 for ignored",
            "rewrite the mask with 0, 1 and −1",
            say="unknown mask values: {}",
        ),
        _share(
            "share of ignored labels",
            "ignored_share",
            0,
            config.max_ignored_share,
            "ignored labels",
            "label more of the chip, or raise validation.max_ignored_share",
        ),
        _share(
            "share of positives", "positive_share", *config.positive_share, "class 1", "check the mask, or set validation.positive_share"
        ),
    ]


def _data_set(task: TaskConfig, config: ValidationConfig, split: bool) -> list[Check]:
    least = config.min_positive_chips
    checks = [
        Check(
            "chips with positives",
            "has_positive",
            "ExpectColumnMeanToBeBetween",
            {"min_value": least},
            f"at least {100 * least:g} % of the chips",
            f"add chips with {task.classes[1]}, or lower validation.min_positive_chips",
            level="data set",
        )
    ]
    if split:
        checks.append(
            Check(
                "no leakage between splits",
                "leakage",
                "ExpectColumnMostCommonValueToBeInSet",
                {"value_set": ["none"]},
                "none",
                "put chips of one place and time on one side of the split",
                level="data set",
            )
        )
    if config.check_band_order:
        checks.append(
            Check(
                "order of the bands",
                "band_order",
                "ExpectColumnMostCommonValueToBeInSet",
                {"value_set": [", ".join(BANDS)]},
                ", ".join(BANDS),
                "set data.bands; if the data really look so, validation.check_band_order: false",
                level="data set",
            ),
        )
    if config.min_separability:
        checks.append(
            Check(
                "masks belong to their images",
                "separability",
                "ExpectColumnMedianToBeBetween",
                {"min_value": config.min_separability},
                f"{task.index.name} tells the classes apart: median at least {config.min_separability:g} (0.5 is chance)",
                "pair each mask with its own image; if the labels are right, lower validation.min_separability",
                level="data set",
            ),
        )
    for band, mean, std in zip(BANDS, task.mean, task.std, strict=True):
        low, high = round(mean - config.max_drift * std, 4), round(mean + config.max_drift * std, 4)
        checks.append(
            Check(
                f"drift of {band}",
                f"{band}_level",
                "ExpectColumnMedianToBeBetween",
                {"min_value": low, "max_value": high},
                f"mean reflectance {low:.3f}–{high:.3f} ({mean:.3f} ± {config.max_drift:g} σ)",
                "check scale, bands and sensor against the task's reference (task.mean, task.std), or raise validation.max_drift",
                level="data set",
            ),
        )
    return checks
