"""Mistakes of a whole data set always stop the pipeline, with one line that names them; sound and odd data sets pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.inventory import Inventory, build_inventory
from hls_foundry.chips.splits import Splits, split_chips
from hls_foundry.errors import ValidationFailed
from hls_foundry.validation.band_order import judge_band_order
from hls_foundry.validation.diagnosis import diagnose
from hls_foundry.validation.run import check, validate

from .conftest import configuration, judge, pairs, rewrite

LENIENT = ("validation.on_failure=quarantine", "validation.max_bad_share=1.0")
CopyOf = Callable[[str], Path]


def failed(report) -> set[str]:
    return {result.name for result in report.checks if not result.passed}


@pytest.mark.parametrize("task", ["burn_scars", "flood"])
def test_sound_data_pass_every_check(sound: dict[str, Path], task: str) -> None:
    report = judge(sound[task], task)
    assert report.success
    assert failed(report) == set()
    assert report.quarantined.empty
    assert not any("not judged" in result.observed for result in report.checks)


def stored_as(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for image, _ in pairs(root):
        rewrite(image, lambda p, f: (np.where(p == -9999, -9999, change(p)).astype(np.float32), f))


def test_float_times_10000_stops_with_the_scale_that_mends_it(copy_of: CopyOf) -> None:
    root = copy_of("burn_scars")
    stored_as(root, lambda p: p)
    report = judge(root, "burn_scars", *LENIENT)
    assert "as reflectance × 10000 does; set data.scale: 0.0001" in report.failure
    assert failed(report) == {"scale of reflectance"}, "one cause has one name"
    assert judge(root, "burn_scars", "data.scale=0.0001").success


def test_8_bit_previews_stop_even_where_bad_chips_are_tolerated(copy_of: CopyOf) -> None:
    root = copy_of("flood")
    for image, _ in pairs(root):
        rewrite(image, lambda p, f: ((np.clip(p / 4000, 0, 1) * 255).astype(np.uint8), f | {"nodata": None}))
    report = judge(root, "flood", *LENIENT)
    assert "8-bit preview: the file holds uint8 values" in report.failure
    assert failed(report) == {"no 8-bit previews"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p / 1e8, "as after dividing by 10000 twice; set data.scale: 10000"),
        (lambda p: p / 100, "as percent do; set data.scale: 0.01"),
    ],
    ids=["divided twice", "percent"],
)
@pytest.mark.parametrize("task", ["burn_scars", "flood"])
def test_other_scales_are_named_on_every_chip(copy_of: CopyOf, task: str, change: Callable, words: str) -> None:
    root = copy_of(task)
    stored_as(root, change)
    config = configuration(task)
    judged = diagnose(build_inventory(root, config.task, config.data).table, config.data, config.validation)
    assert judged["scale_problem"].str.contains(words, regex=False).mean() >= 0.9
    assert judged["preview_problem"].isna().all()


@pytest.mark.parametrize(
    ("task", "order", "words"),
    [
        ("burn_scars", (2, 1, 0, 3, 4, 5), "blue and red are swapped"),
        ("flood", (2, 1, 0, 3, 4, 5), "blue and red are swapped"),
        ("flood", (0, 1, 2, 4, 3, 5), "nir and swir1 are swapped"),
    ],
)
def test_wrong_band_order_is_named_and_the_advice_mends_it(copy_of: CopyOf, task: str, order: tuple[int, ...], words: str) -> None:
    root = copy_of(task)
    for image, _ in pairs(root):
        rewrite(image, lambda p, f: (six(p)[list(order)], f))
    report = judge(root, task, *LENIENT)
    result = next(result for result in report.checks if result.name == "order of the bands")
    assert result.observed == f"wrong band order: {words}"
    assert not report.success
    bands = result.advice.split("data.bands to ")[1].split(" (of")[0]
    config = configuration(task, f"data.bands={bands}")
    mended = judge_band_order(build_inventory(root, config.task, config.data).table, config.task)
    assert mended.problem == ""


def six(pixels: np.ndarray) -> np.ndarray:
    """The six bands of a 6- or 13-band stack."""
    return pixels if len(pixels) == 6 else pixels[[1, 2, 3, 8, 11, 12]]


def reordered(table: pd.DataFrame, order: tuple[int, ...]) -> pd.DataFrame:
    other = table.copy()
    for place, band in enumerate(order):
        for what in ("mean", "std", "q02", "q50", "q98"):
            other[f"{BANDS[place]}_{what}"] = table[f"{BANDS[band]}_{what}"]
    return other


@pytest.mark.parametrize("task", ["burn_scars", "flood"])
@pytest.mark.parametrize(
    "order",
    [(3, 0, 1, 2, 4, 5), (3, 2, 1, 0, 4, 5), (0, 1, 3, 2, 4, 5), (0, 1, 2, 3, 5, 4), (0, 2, 1, 3, 4, 5), (5, 4, 3, 2, 1, 0)],
    ids=str,
)
def test_other_orders_are_found_from_the_statistics(sound: dict[str, Path], task: str, order: tuple[int, ...]) -> None:
    config = configuration(task)
    table = build_inventory(sound[task], config.task, config.data).table
    judged = judge_band_order(reordered(table[table["cloud_share"] < 0.5], order), config.task)
    assert judged.order == order
    assert judged.problem != ""


@pytest.mark.parametrize("task", ["burn_scars", "flood"])
def test_no_handful_of_chips_raises_a_false_alarm_on_the_band_order(sound: dict[str, Path], task: str) -> None:
    config = configuration(task)
    table = build_inventory(sound[task], config.task, config.data).table
    random = np.random.default_rng(0)
    for count in (1, 2, 4, 8):
        for _ in range(25):
            few = table.iloc[random.choice(len(table), count, replace=False)]
            assert judge_band_order(few, config.task).problem == ""


def test_snow_water_and_cloud_are_no_wrong_band_order() -> None:
    """Typical spectra: Warren 1982 (snow), clear and turbid water, opaque cloud; standard deviations of a tenth to a half."""
    spectra = {
        "snow": (0.85, 0.84, 0.82, 0.72, 0.09, 0.07),
        "water": (0.04, 0.03, 0.02, 0.01, 0.005, 0.003),
        "turbid water": (0.07, 0.10, 0.11, 0.06, 0.02, 0.01),
        "cloud": (0.62, 0.60, 0.60, 0.62, 0.50, 0.42),
        "sand": (0.16, 0.24, 0.32, 0.40, 0.48, 0.44),
    }
    for task in ("burn_scars", "flood"):
        for values in spectra.values():
            for spread in (0.1, 0.3, 0.5):
                row = {f"{band}_q50": value for band, value in zip(BANDS, values, strict=True)}
                row |= {f"{band}_std": spread * value for band, value in zip(BANDS, values, strict=True)}
                row |= {f"{band}_q02": (1 - spread) * value for band, value in zip(BANDS, values, strict=True)}
                assert judge_band_order(pd.DataFrame([row] * 6), configuration(task).task).problem == ""


def test_masks_of_other_places_on_the_right_grid_are_found_by_the_pixels(copy_of: CopyOf) -> None:
    root = copy_of("burn_scars")
    masks = [mask for _, mask in pairs(root)]
    labels = {}
    for mask in masks:
        rewrite(mask, lambda p, f, mask=mask: (labels.setdefault(mask, p), f))
    for mask, other in zip(masks, masks[1:] + masks[:1], strict=True):
        rewrite(mask, lambda p, f, other=other: (labels[other], f))
    report = judge(root, "burn_scars", *LENIENT)
    assert "image and mask look to be of different places" in report.failure
    assert failed(report) == {"masks belong to their images"}


def test_inverted_labels_are_named(copy_of: CopyOf) -> None:
    root = copy_of("flood")
    for _, mask in pairs(root):
        rewrite(mask, lambda p, f: (np.where(p < 0, p, 1 - p).astype(p.dtype), f))
    report = judge(root, "flood", "validation.positive_share=[0,1]")
    assert "the labels look inverted" in report.failure


def test_drift_from_the_reference_names_the_band(copy_of: CopyOf) -> None:
    root = copy_of("burn_scars")
    for image, _ in pairs(root):
        rewrite(image, lambda p, f: (np.where(p == -9999, p, p + np.array([1200, 0, 0, 0, 0, 0])[:, None, None]).astype(np.int16), f))
    report = judge(root, "burn_scars", "validation.check_band_order=false")
    assert failed(report) == {"drift of blue"}
    assert "drift of blue" in report.failure


def test_too_few_chips_with_positives(copy_of: CopyOf) -> None:
    root = copy_of("burn_scars")
    for _, mask in pairs(root)[1:]:
        rewrite(mask, lambda p, f: (np.zeros_like(p), f))
    report = judge(root, "burn_scars")
    assert failed(report) == {"chips with positives"}
    assert "5 % of the chips" in report.failure


def test_leakage_between_splits_is_named(sound: dict[str, Path]) -> None:
    config = configuration("burn_scars")
    inventory = build_inventory(sound["burn_scars"], config.task, config.data)
    inventory = replace(inventory, table=inventory.table.assign(listed_split=""))
    splits = split_chips(inventory, config.data)
    clean = check(inventory, splits, config.task, config.validation, config.data)
    assert clean.success
    assert "no leakage between splits" in {result.name for result in clean.checks}
    table = splits.table.copy()
    first = table.index[table["split"] == "train"][0]
    twin = table.index[table["split"] == "test"][0]
    for column in ("tile", "date", "left", "right", "top", "bottom", "transform", "crs"):
        table.at[twin, column] = table.at[first, column]
    leaking = check(inventory, Splits(table, splits.root), config.task, config.validation, config.data)
    assert failed(leaking) == {"no leakage between splits"}
    assert table.at[twin, "chip"] in leaking.failure


def test_lists_of_the_data_set_may_part_neighbours_but_not_copies(sound: dict[str, Path]) -> None:
    config = configuration("burn_scars")
    inventory = build_inventory(sound["burn_scars"], config.task, config.data)
    table = inventory.table.assign(split=["train", "test"] * (len(inventory.table) // 2))
    table = table.assign(listed_split=table["split"], tile="10TGS", date="2020-07-01")
    report = check(inventory, Splits(table, inventory.root), config.task, config.validation, config.data)
    assert report.success
    table.loc[1, "digest"] = table.loc[0, "digest"]
    report = check(inventory, Splits(table, inventory.root), config.task, config.validation, config.data)
    assert "equal pixels" in report.failure


def without_masks(inventory: Inventory, count: int) -> Inventory:
    table = inventory.table.copy()
    table.loc[: count - 1, ["mask", "mask_digest"]] = ""
    table.loc[: count - 1, "error"] = "image has no mask"
    return replace(inventory, table=table)


def test_fail_and_quarantine_follow_the_configuration(sound: dict[str, Path], tmp_path: Path) -> None:
    config = configuration("burn_scars")
    inventory = build_inventory(sound["burn_scars"], config.task, config.data)

    def run(count: int, **settings: object):
        chosen = config.validation.model_copy(update={"min_separability": 0.0, **settings})
        return validate(without_masks(inventory, count), None, config.task, chosen, config.data, page=tmp_path / "docs" / "index.html")

    report = run(2)
    assert len(report.quarantined) == 2
    assert len(report.inventory.table) == 18
    with pytest.raises(
        ValidationFailed, match=r"3 of 20 chips are bad, at most 10 % may be; failed checks: pairs are complete \(3\)"
    ) as error:
        run(3)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "docs" / "index.html") in str(error.value)
    assert "validation failed" in (tmp_path / "docs" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(ValidationFailed, match="1 of 20 chips are bad, none may be"):
        run(1, on_failure="fail")
    assert run(0, on_failure="fail").success
    with pytest.raises(ValidationFailed, match="20 of 20 chips are bad"):
        run(20, max_bad_share=1.0)


def test_copies_with_different_masks_are_all_in_doubt(copy_of: CopyOf) -> None:
    root = copy_of("burn_scars")
    chips = pairs(root)
    shutil.copy(chips[0][0], chips[1][0])
    report = judge(root, "burn_scars", "validation.max_bad_share=0.5")
    assert len(report.quarantined) == 2
    assert report.quarantined["reasons"].str.contains("with another mask").all()
