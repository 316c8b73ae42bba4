"""Every mistake that spoils a single chip is found and named; the others stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from hls_foundry.validation.report import ValidationReport

from .conftest import CHIPS, judge, pairs, rewrite

PLANTED = {
    0: ("no mask", "pairs are complete", "the image has no mask"),
    1: ("truncated", "files are readable", "truncated"),
    2: ("not a TIFF", "files are readable", "not a TIFF"),
    3: ("uint8 preview", "no 8-bit previews", "8-bit preview"),
    4: ("8-bit values in int16", "no 8-bit previews", "8-bit preview"),
    5: ("8-bit values as floats 0–1", "no 8-bit previews", "8-bit preview divided by 255"),
    6: ("three bands", "files are readable", "3 bands"),
    7: ("float × 10000", "scale of reflectance", "data.scale: 0.0001"),
    8: ("mask of another place", "image and mask are of one place", "different places"),
    9: ("mask of another size", "image and mask share a grid", "64×64"),
    10: ("unknown label", "label values", "unknown mask values: 2"),
    11: ("all nodata", "share of nodata", "no data on 100.0 %"),
    12: ("NaN pixels", "no NaN or infinity", "NaN or infinite"),
    19: ("copy of another chip", "no duplicates", "the same pixels as"),
    14: ("all labels ignored", "share of ignored labels", "ignored labels on 100.0 %"),
    15: ("all positive", "share of positives", "class 1 on 100.0 %"),
    16: ("resolution 300 m", "resolution", "resolution: 300 m"),
    17: ("too bright", "highest reflectance", "has reflectance 2."),
}


def preview(pixels: np.ndarray) -> np.ndarray:
    low, high = np.quantile(pixels, (0.02, 0.98), axis=(1, 2), keepdims=True)
    return np.clip((pixels - low) / (high - low) * 255, 0, 255).round()


def as_floats(pixels: np.ndarray, profile: dict) -> tuple[np.ndarray, dict]:
    return pixels.astype(np.float32), profile | {"dtype": "float32"}


def with_nan(pixels: np.ndarray, profile: dict) -> tuple[np.ndarray, dict]:
    pixels = np.where(pixels == -9999, -9999, pixels / 10_000).astype(np.float32)
    pixels[:, 30:40, 30:40] = np.nan
    return pixels, profile


def plant(root: Path) -> list[str]:
    """One mistake in each of the first chips; returns the names of all chips."""
    chips = pairs(root)
    image, mask = ([pair[side] for pair in chips] for side in (0, 1))
    mask[0].unlink()
    image[1].write_bytes(image[1].read_bytes()[: image[1].stat().st_size // 2])
    image[2].write_bytes(b"<html>404</html>" * 100)
    rewrite(image[3], lambda p, f: (preview(p).astype(np.uint8), f | {"nodata": None}))
    rewrite(image[4], lambda p, f: (preview(p).astype(np.int16), f | {"nodata": None}))
    rewrite(image[5], lambda p, f: ((preview(p) / 255).astype(np.float32), f | {"nodata": None}))
    rewrite(image[6], lambda p, f: (p[:3], f))
    rewrite(image[7], as_floats)
    rewrite(mask[8], lambda p, f: (p, f | {"transform": Affine.translation(60_000, 0) @ f["transform"]}))
    rewrite(mask[9], lambda p, f: (p[:, :64, :64], f))
    rewrite(mask[10], lambda p, f: (np.where(p == 1, 2, p).astype(np.int16), f))
    rewrite(image[11], lambda p, f: (np.full_like(p, -9999), f))
    rewrite(image[12], with_nan)
    shutil.copy(image[18], image[19])
    shutil.copy(mask[18], mask[19])
    rewrite(mask[14], lambda p, f: (np.full_like(p, -1), f))
    rewrite(mask[15], lambda p, f: (np.ones_like(p), f))
    for path in (image[16], mask[16]):
        rewrite(path, lambda p, f: (p, f | {"transform": f["transform"] @ Affine.scale(10)}))
    rewrite(image[17], lambda p, f: (np.clip(p, None, 8000) + 17_000 * (np.arange(6) == 3)[:, None, None].astype(np.int16), f))
    return [path.name.removesuffix("_merged.tif") for path in image]


@pytest.fixture(scope="module")
def planted(sound: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], ValidationReport]:
    root = Path(shutil.copytree(sound["burn_scars"], tmp_path_factory.mktemp("planted") / "chips"))
    names = plant(root)
    return names, judge(root, "burn_scars", "validation.max_bad_share=0.95", "validation.min_separability=0")


@pytest.mark.parametrize("number", PLANTED, ids=[what for what, _, _ in PLANTED.values()])
def test_mistake_is_named(planted: tuple[list[str], ValidationReport], number: int) -> None:
    names, report = planted
    _, check, words = PLANTED[number]
    chip = next(name for name in report.quarantined["chip"] if names[number] in name)
    reasons = report.quarantined.set_index("chip").loc[chip, "reasons"]
    assert words in reasons
    assert ";" not in reasons.replace("; fetch", "").replace("; set data.scale", ""), "one cause has one name"
    failed = next(result for result in report.checks if result.name == check)
    assert not failed.passed
    assert chip in failed.chips
    assert failed.advice


def test_sound_chips_stay_and_the_pipeline_goes_on(planted: tuple[list[str], ValidationReport]) -> None:
    names, report = planted
    assert report.success, report.failure
    assert len(report.quarantined) == len(PLANTED)
    assert len(report.inventory.table) == CHIPS - len(PLANTED)
    assert not set(report.inventory.table["chip"]) & set(report.quarantined["chip"])
    assert any(names[18] in chip for chip in report.inventory.table["chip"]), "the original of a copy is kept"
    assert report.inventory.table["error"].eq("").all()
