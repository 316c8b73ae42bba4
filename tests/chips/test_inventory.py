"""The inventory: what it says of sound chips, and the one line it has for each kind of broken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.transform import from_origin

from hls_foundry.chips.inventory import EMPTY_ROW, build_inventory, cloudy
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import SourceError

CUSTOM_UTM = (
    'PROJCS["UTM Zone 10, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",-123],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)
NAME = "HLS.S30.T10TGS.2018285.v1.4"


def row_of(root: Path, task: TaskConfig, data: DataConfig) -> Any:
    table = build_inventory(root, task, data, workers=2).table
    assert len(table) == 1
    assert "\n" not in table.error[0]
    return table.iloc[0]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(200, 4000, (6, 64, 96)).astype(np.int16)


@pytest.fixture
def mask() -> np.ndarray:
    labels = np.zeros((64, 96), np.int16)
    labels[:16], labels[-8:] = 1, -1
    return labels


def test_a_sound_chip_is_described(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    image[:, :, :24] = -9999
    write_tif(tmp_path / f"training/{NAME}_merged.tif", image, nodata=-9999)
    write_tif(tmp_path / f"training/{NAME}.mask.tif", mask)
    inventory = build_inventory(tmp_path, burn_task, data)
    row = inventory.table.iloc[0]
    assert list(inventory.table.columns) == list(EMPTY_ROW)
    assert row.error == ""
    assert (row.chip, row.listed_split, row.tile, row.date) == (NAME, "train", "10TGS", "2018-10-12")
    assert (row.image, row["mask"]) == (f"training/{NAME}_merged.tif", f"training/{NAME}.mask.tif")
    assert (row.crs, row.epsg, row.width, row.height, row["count"]) == ("EPSG:32610", 32610, 96, 64, 6)
    assert (row["dtype"], row.mask_dtype) == ("int16", "int16")
    assert row.resolution_m == pytest.approx(30)
    assert row["transform"] == (30, 0, 700_000, 0, -30, 5_200_000)
    assert (row.left, row.top) == pytest.approx((-120.378, 46.922), abs=0.01)
    assert row.left < row.right
    assert row.bottom < row.top
    assert row.same_grid
    assert (row.nodata_share, row.nonfinite_share) == (0.25, 0)
    assert (row.positive_share, row.ignored_share, row.mask_values) == (0.25, 0.125, (-1, 0, 1))
    valid = image[:, :, 24:].astype(float) / 10_000
    for index, band in enumerate(("blue", "green", "red", "nir", "swir1", "swir2")):
        assert row[f"{band}_mean"] == pytest.approx(valid[index].mean(), rel=1e-4)
        assert row[f"{band}_std"] == pytest.approx(valid[index].std(), rel=1e-4)
        assert row[f"{band}_q50"] == pytest.approx(np.median(valid[index]), rel=0.01)
        assert row[f"{band}_q02"] == pytest.approx(np.quantile(valid[index], 0.02), rel=0.05)


def test_statistics_of_a_large_chip_come_from_a_sample_and_shares_from_every_pixel(
    tmp_path: Path, write_tif: Any, burn_task: TaskConfig, data: DataConfig
) -> None:
    image = np.random.default_rng(0).normal(0.2, 0.05, (6, 512, 512)).astype(np.float32)
    image[2, 1, 1] = -9999
    write_tif(tmp_path / "training/a_merged.tif", image)
    write_tif(tmp_path / "training/a.mask.tif", np.zeros((512, 512), np.uint8))
    row = row_of(tmp_path, burn_task, data)
    assert row.nodata_share == 1 / 512**2
    assert row.nir_mean == pytest.approx(0.2, abs=0.002)
    assert row.nir_q98 == pytest.approx(np.quantile(image[3], 0.98), abs=0.005)


def test_the_fingerprint_is_that_of_the_content(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    for folder, names, options in (("one", "ab", {}), ("two", "yx", {"compress": "deflate", "interleave": "pixel", "tiled": True})):
        for index, name in enumerate(names):
            write_tif(tmp_path / folder / f"{name}_merged.tif", image + index, **options)
            write_tif(tmp_path / folder / f"{name}.mask.tif", mask)
    one, two = (build_inventory(tmp_path / folder, burn_task, data) for folder in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64
    assert one.table.digest.nunique() == 2
    image[0, 0, 0] += 1
    write_tif(tmp_path / "two/x_merged.tif", image + 1)
    assert build_inventory(tmp_path / "two", burn_task, data).fingerprint != two.fingerprint


def test_rows_do_not_depend_on_the_number_of_threads(tmp_path: Path, write_chip: Any, burn_task: TaskConfig, data: DataConfig) -> None:
    for index in range(12):
        write_chip(tmp_path, f"chip{index:02d}", index, size=64 + 16 * (index % 3))
    seen: list[tuple[int, int]] = []
    one = build_inventory(tmp_path, burn_task, data, workers=1, progress=lambda done, total: seen.append((done, total)))
    four = build_inventory(tmp_path, burn_task, data, workers=4)
    assert one.table.equals(four.table)
    assert seen == [(done, 12) for done in range(1, 13)]


def broken_image(image: np.ndarray, kind: str) -> np.ndarray:
    image = image.astype(np.float32) / 10_000
    if kind == "nan":
        image[1, 3, 4:7] = np.nan
    elif kind == "infinite":
        image[5, 0, 0] = -np.inf
    elif kind == "nodata":
        image[2] = -9999
    elif kind == "bands":
        image = image[:4]
    return image


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "training/a_merged.tif has 3 pixels that are NaN or infinite"),
        ("infinite", "training/a_merged.tif has 1 pixels that are NaN or infinite"),
        ("nodata", "training/a_merged.tif is all nodata"),
        ("bands", "training/a_merged.tif has 4 bands"),
    ],
)
def test_broken_images_are_named(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig, kind: str, words: str
) -> None:
    write_tif(tmp_path / "training/a_merged.tif", broken_image(image, kind))
    write_tif(tmp_path / "training/a.mask.tif", mask)
    assert words in row_of(tmp_path, burn_task, data).error


def test_nan_as_declared_nodata_is_no_error(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    write_tif(tmp_path / "training/a_merged.tif", broken_image(image, "nan"), nodata=np.nan)
    write_tif(tmp_path / "training/a.mask.tif", mask)
    row = row_of(tmp_path, burn_task, data)
    assert row.error == ""
    assert row.nodata_share == 3 / (64 * 96)


def test_incomplete_pairs_and_unreadable_files_are_rows_with_an_error(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    folder = tmp_path / "training"
    write_tif(folder / "a_merged.tif", image)
    write_tif(folder / "b.mask.tif", mask)
    for name in "cdef":
        write_tif(folder / f"{name}_merged.tif", image)
        write_tif(folder / f"{name}.mask.tif", mask)
    (folder / "c_merged.tif").write_bytes((folder / "c_merged.tif").read_bytes()[:20_000])
    (folder / "d_merged.tif").write_bytes(b"")
    (folder / "e.mask.tif").write_text("not a mask")
    write_tif(folder / "f.mask.tif", np.where(mask == 1, 2, mask))
    table = build_inventory(tmp_path, burn_task, data).table.set_index("chip")
    assert table.error["a"] == "training/a_merged.tif has no mask: add it or remove the image"
    assert table.error["b"] == "training/b.mask.tif has no image: add it or remove the mask"
    assert "training/c_merged.tif is a truncated or damaged TIFF" in table.error["c"]
    assert "training/d_merged.tif is empty" in table.error["d"]
    assert "training/e.mask.tif is not a TIFF" in table.error["e"]
    assert "training/f.mask.tif holds the unknown mask value 2" in table.error["f"]
    assert table.mask_values["f"] == (-1, 0, 2)
    assert not any("\n" in error for error in table.error)


SHIFT = {"transform": from_origin(700_000 + 16, 5_200_000, 30, 30)}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"transform": from_origin(700_000 + 1e-6, 5_200_000 - 1e-7, 30, 30 + 1e-12)}, ""),
        ({"transform": from_origin(700_000 + 14, 5_200_000, 30, 30)}, ""),
        ({"crs": CUSTOM_UTM}, ""),
        (SHIFT, "their places differ, by 0.5 pixels"),
        ({"transform": from_origin(700_000, 5_200_000, 31, 31)}, "their places differ, by 3.8 pixels"),
        ({"crs": "EPSG:32611"}, "their CRS differ"),
        ({"crs": None}, "the mask has no CRS"),
    ],
)
def test_masks_on_another_grid_are_found(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig, options: Any, problem: str
) -> None:
    write_tif(tmp_path / "training/a_merged.tif", image)
    write_tif(tmp_path / "training/a.mask.tif", mask, **options)
    row = row_of(tmp_path, burn_task, data)
    assert row.same_grid == (problem == "")
    if problem:
        assert row.grid_problem.startswith(problem)
        assert "training/a.mask.tif does not lie on its image" in row.error
    else:
        assert (row.grid_problem, row.error) == ("", "")


def test_a_mask_of_another_size_is_found(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    write_tif(tmp_path / "training/a_merged.tif", image)
    write_tif(tmp_path / "training/a.mask.tif", mask[:, :80])
    assert "the mask has 80×64 pixels, the image 96×64" in row_of(tmp_path, burn_task, data).error


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_chips_without_georeferencing_are_fine(
    tmp_path: Path, write_tif: Any, image: np.ndarray, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    write_tif(tmp_path / "training/a_merged.tif", image, crs=None, transform=None)
    write_tif(tmp_path / "training/a.mask.tif", mask, crs=None, transform=None)
    row = row_of(tmp_path, burn_task, data)
    assert (row.error, row.crs, row.epsg, row.same_grid) == ("", "", 0, True)
    assert np.isnan([row.left, row.bottom, row.right, row.top, row.resolution_m]).all()


def test_a_header_that_claims_a_continent_is_an_error_not_a_crash(
    tmp_path: Path, write_tif: Any, mask: np.ndarray, burn_task: TaskConfig, data: DataConfig
) -> None:
    import rasterio

    (tmp_path / "training").mkdir()
    size = {"width": 40_000, "height": 40_000, "count": 6, "dtype": "int16", "crs": "EPSG:32610", "transform": from_origin(0, 0, 30, 30)}
    with rasterio.open(tmp_path / "training/a_merged.tif", "w", driver="GTiff", SPARSE_OK=True, tiled=True, **size):
        pass
    write_tif(tmp_path / "training/a.mask.tif", mask)
    assert "claims 40000×40000 pixels" in row_of(tmp_path, burn_task, data).error


def test_folders_without_chips_are_refused(tmp_path: Path, burn_task: TaskConfig, data: DataConfig) -> None:
    with pytest.raises(SourceError, match="is empty"):
        build_inventory(tmp_path, burn_task, data)


@pytest.mark.real_data
def test_the_real_flood_chip(shared_data: Path, flood_task: TaskConfig, data: DataConfig) -> None:
    row = row_of(shared_data / "sen1floods11", flood_task, data)
    assert row.error == ""
    assert row.same_grid, "its mask's transform differs by float noise only"
    assert row.resolution_m == pytest.approx(10, abs=0.1)
    assert (row.left, row.top) == pytest.approx((-0.78189, 38.12881), abs=1e-4)
    assert row.positive_share == pytest.approx(0.267, abs=1e-3)
    assert row.mask_values == (-1, 0, 1)
    assert row.cloud_share < 0.05


@pytest.mark.real_data
def test_the_cloud_test_finds_labelled_clouds(shared_data: Path) -> None:
    scene = np.load(shared_data / "cloud/sentinel2_toa_512.npz")
    found, truth = cloudy(scene["img"].transpose(2, 0, 1)), scene["msk"][..., 0] == 4
    assert (found & truth).sum() / truth.sum() > 0.85, "recall"
    assert (found & truth).sum() / found.sum() > 0.88, "precision"
    assert found.mean() == pytest.approx(truth.mean(), abs=0.02)
    assert not cloudy(np.full((6, 3, 3), np.nan, np.float32)).any()
