"""Real imagery passes with the tasks' own configuration; what is wrong with one file is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from .conftest import judge

pytestmark = pytest.mark.real_data
SPAIN = "Spain_7370579"


@pytest.fixture
def landsat(shared_data: Path, tmp_path: Path) -> Path:
    """The real HLS L30 chip with a mask beside it: dark NBR as label, for the chip brings none."""
    image = tmp_path / "chips" / "training" / "HLS.L30.T13SER.2020200.v2.0_merged.tif"
    image.parent.mkdir(parents=True)
    shutil.copy(next((shared_data / "hls").glob("hls_l30_*.tif")), image)
    with rasterio.open(image) as dataset:
        nir, swir2 = dataset.read(5), dataset.read(7)
        profile = dataset.profile | {"count": 1, "dtype": "int16", "nodata": -1}
    with np.errstate(invalid="ignore"):
        index = (nir - swir2) / (nir + swir2)
    with rasterio.open(image.with_name(image.name.replace("_merged.tif", ".mask.tif")), "w", **profile) as mask:
        mask.write((index < np.nanquantile(index, 0.2)).astype(np.int16), 1)
    return tmp_path / "chips"


def test_real_sentinel_chip_passes_as_it_is(shared_data: Path) -> None:
    report = judge(shared_data / "sen1floods11", "flood")
    assert report.success, report.failure
    assert report.quarantined.empty
    assert [result.name for result in report.checks if not result.passed] == []


def test_real_hls_chip_in_float_times_10000_is_found_and_mended_by_the_advice(landsat: Path) -> None:
    bands = "data.bands=[2, 3, 4, 5, 6, 7]"
    wrong = judge(landsat, "burn_scars", bands)
    assert "wrong scale: values reach" in wrong.failure
    assert "as reflectance × 10000 does; set data.scale: 0.0001" in wrong.failure
    mended = judge(landsat, "burn_scars", bands, "data.scale=0.0001")
    assert mended.success, mended.failure
    assert mended.quarantined.empty


def test_first_six_bands_of_a_real_landsat_stack_are_named(landsat: Path) -> None:
    report = judge(landsat, "burn_scars", "data.bands=[1, 2, 3, 4, 5, 6]", "data.scale=0.0001")
    assert "wrong band order: the bands are the file's first six" in report.failure
    assert "2 to 7 of Landsat 8" in report.failure


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ((4, 3, 2, 9, 12, 13), "blue and red are swapped"),
        ((2, 3, 4, 13, 12, 9), "nir and swir2 are swapped"),
        ((1, 2, 3, 4, 9, 12), "the bands are the file's first six"),
        ((1, 2, 3, 4, 5, 6), "the bands are the file's first six"),
    ],
)
def test_wrong_bands_of_a_real_scene_are_named(
    shared_data: Path, tmp_path: Path, bands: tuple[int, ...], words: str, quarters: Callable
) -> None:
    report = judge(quarters(tmp_path), "flood", f"data.bands={list(bands)}")
    assert f"wrong band order: {words}" in report.failure
    assert judge(tmp_path, "flood").success


@pytest.fixture
def quarters(shared_data: Path) -> Callable[[Path], Path]:
    """The real chip cut in four: a data set large enough to judge its bands by."""

    def cut(root: Path) -> Path:
        for folder, ending in (("S2Hand", "S2Hand"), ("LabelHand", "LabelHand")):
            (root / folder).mkdir()
            with rasterio.open(shared_data / "sen1floods11" / folder / f"{SPAIN}_{ending}.tif") as dataset:
                for number in range(4):
                    window = rasterio.windows.Window(256 * (number % 2), 256 * (number // 2), 256, 256)
                    profile = dataset.profile | {"width": 256, "height": 256, "transform": dataset.window_transform(window)}
                    with rasterio.open(root / folder / f"Spain_{number}_{ending}.tif", "w", **profile) as part:
                        part.write(dataset.read(window=window))
        return root

    return cut
