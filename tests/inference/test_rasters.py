"""Rasters of predictions: layout, georeferencing, nodata, atomicity, overlays."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from hls_foundry.chips.reader import ChipReader
from hls_foundry.chips.scene import Grid
from hls_foundry.errors import ConfigError, FoundryError
from hls_foundry.inference.predictor import Predictor
from hls_foundry.inference.rasters import CogStream, mask_as_uint8, overlay_png, probabilities_as_uint16, write_cog

from .models import MEAN, STD, VitWithConvolutions

GRID = Grid(700, 600, Affine(30, 0, 499_980, 0, -30, 4_500_000), CRS.from_epsg(32610))


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of the tests' own rasterio.open


def directories(content: bytes) -> list[tuple[int, int, bool]]:
    """(offset of the directory, width, tiled) of each image in a classic little-endian TIFF, in file order (TIFF 6.0, section 2)."""
    found = []
    (offset,) = struct.unpack_from("<I", content, 4)
    while offset:
        (count,) = struct.unpack_from("<H", content, offset)
        tags = {}
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from("<HHII", content, offset + 2 + 12 * entry)
            tags[tag] = value & 0xFFFF if kind == 3 else value
        found.append((offset, tags[256], 322 in tags))
        (offset,) = struct.unpack_from("<I", content, offset + 2 + 12 * count)
    return found


def assert_cloud_optimised(content: bytes, width: int) -> None:
    """GDAL wrote it as COG; all directories come before the pixels, full size first, each tiled, halving to at most one tile."""
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.block_shapes[0] == (256, 256)
    images = directories(content)
    offsets, widths, tiled = zip(*images, strict=True)
    assert widths[0] == width
    assert list(widths) == sorted(widths, reverse=True)
    assert widths[-1] <= 256
    assert all(tiled)
    assert list(offsets) == sorted(offsets)
    assert offsets[-1] < 16_384  # one small request reads them all


def classes(height: int = 600, width: int = 700) -> np.ndarray:
    mask = (np.random.default_rng(0).random((height // 20 + 1, width // 20 + 1)) > 0.5).repeat(20, 0).repeat(20, 1)
    mask = mask[:height, :width].astype(np.int16)
    mask[:50] = -1
    return mask


def test_bytes_are_a_cog_on_the_grid_with_nodata_tags_and_band_names() -> None:
    mask = classes()
    content = write_cog(None, mask_as_uint8(mask), GRID, 255, {"MODEL": "burn_scars 3"}, ("class",))
    assert_cloud_optimised(content, 700)
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.crs == GRID.crs
        assert dataset.transform == GRID.transform
        assert dataset.nodata == 255
        assert dataset.dtypes == ("uint8",)
        assert dataset.tags()["MODEL"] == "burn_scars 3"
        assert dataset.descriptions == ("class",)
        np.testing.assert_array_equal(dataset.read(1), np.where(mask < 0, 255, mask))
        assert set(np.unique(dataset.read(1, out_shape=(150, 175)))) <= {0, 1, 255}  # overviews hold classes, not mixtures


def test_several_bands_and_the_scale_of_probabilities_survive(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).random((2, 300, 400)).astype(np.float32)
    probabilities[:, 0, 0] = np.nan
    path = write_cog(tmp_path / "new" / "p.tif", probabilities_as_uint16(probabilities), Grid(400, 300), 65535, scale=1e-4)
    with rasterio.open(path) as dataset:
        stored = dataset.read(masked=True)
        assert dataset.scales == (1e-4, 1e-4)
    np.testing.assert_array_equal(stored.mask, np.isnan(probabilities))
    np.testing.assert_allclose(stored * 1e-4, probabilities, atol=5.1e-5)
    assert [p.name for p in path.parent.iterdir()] == ["p.tif"]


def test_a_grid_without_crs_is_written_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("default", PendingDeprecationWarning)
        content = write_cog(None, np.zeros((80, 64), np.uint8), Grid(64, 80), 255)
        with CogStream(tmp_path / "a.tif", 1, "uint8", Grid(64, 80), 255) as stream:
            stream.write(0, np.zeros((1, 80, 64), np.uint8))
        overlay_png(np.zeros((6, 80, 64), np.float32), np.zeros((80, 64), np.int16))
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.crs is None


def test_a_crs_in_custom_words_survives() -> None:
    words = CRS.from_wkt(CRS.from_proj4("+proj=lcc +lat_1=40 +lat_2=48 +lat_0=44 +lon_0=-120 +ellps=GRS80 +units=m").to_wkt())
    assert words.to_epsg() is None
    content = write_cog(None, np.zeros((64, 64), np.uint8), Grid(64, 64, GRID.transform, words), 255)
    with MemoryFile(content) as memory, memory.open() as dataset:
        assert dataset.transform == GRID.transform
        assert dataset.crs.to_proj4() == words.to_proj4()


def test_an_interrupted_stream_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "mask.tif"
    target.write_text("the one before")

    def interrupted() -> None:
        with CogStream(target, 1, "uint8", GRID, 255) as stream:
            stream.write(0, np.zeros((1, 100, 700), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for write in (
        lambda path: write_cog(path, np.zeros((64, 64), np.uint8), Grid(64, 64), 255),
        lambda path: CogStream(path, 1, "uint8", Grid(64, 64), 255),
    ):
        with pytest.raises(FoundryError, match=r"mask\.tif cannot be written .*choose another folder") as caught:
            write(tmp_path / "file" / "mask.tif")
        assert "\n" not in str(caught.value)


def test_the_overlay_tints_class_1_and_hides_nodata() -> None:
    pixels = np.random.default_rng(0).random((6, 90, 120)).astype(np.float32) * 0.2
    pixels[:, :10] = np.nan
    mask = np.zeros((90, 120), np.int16)
    mask[:10] = -1
    mask[40:60, 40:60] = 1
    with MemoryFile(overlay_png(pixels, mask)) as memory, memory.open() as dataset:
        assert (dataset.driver, dataset.count, dataset.shape) == ("PNG", 4, (90, 120))
        red, green, blue, alpha = dataset.read().astype(int)
    assert (alpha[:10] == 0).all()
    assert (alpha[10:] == 255).all()
    assert (red[40, 45], green[40, 45], blue[40, 45]) == (255, 64, 32)  # the outline
    assert (red - blue)[45:55, 45:55].mean() > (red - blue)[70:, :].mean() + 40
    assert red[70:].std() > 20


def test_the_overlay_of_nothing_is_still_an_image() -> None:
    content = overlay_png(np.full((6, 64, 64), np.nan, np.float32), np.full((64, 64), -1, np.int16))
    assert content[:4] == b"\x89PNG"


def write_scene(path: Path, height: int, width: int, grid: Grid | None = None) -> Path:
    """An int16 scene ×10000 with a nodata wedge, as HLS products are stored."""
    coarse = torch.randn(1, 6, 20, 20, generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].numpy()
    values = ((np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * noise).clip(0.001) * 10_000).astype(np.int16)
    rows, columns = np.mgrid[:height, :width]
    values[:, columns + rows // 3 < 90] = -9999
    profile = {"driver": "GTiff", "dtype": "int16", "nodata": -9999, "tiled": True, "compress": "deflate"}
    if grid:
        profile |= {"crs": grid.crs, "transform": grid.transform}
    with rasterio.open(path, "w", width=width, height=height, count=6, **profile) as dataset:
        dataset.write(values)
    return path


@pytest.mark.parametrize("size", [(600, 700), (65, 300), (300, 64)])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_streamed_scene_is_bit_for_bit_the_scene_in_memory(tmp_path: Path, size: tuple[int, int], precision: str) -> None:
    path = write_scene(tmp_path / "scene.tif", *size, GRID)
    predictor = Predictor(VitWithConvolutions(), MEAN, STD, 224, 0.25, 4, precision=precision)
    calls: list[tuple[int, int]] = []
    with ChipReader(path) as reader:
        scene = reader.scene()
        result = predictor.predict_scene(
            reader, tmp_path / "mask.tif", probabilities=tmp_path / "likely.tif", progress=lambda *call: calls.append(call)
        )
    probabilities = predictor.probabilities(scene.pixels, scene.acquired, scene.location)
    mask = predictor.mask(scene.pixels)
    with rasterio.open(result.mask) as written:
        np.testing.assert_array_equal(written.read(1), mask_as_uint8(mask))
        assert (written.crs, written.transform, written.shape) == (GRID.crs, GRID.transform, size)
        assert written.tags()["PRECISION"] == predictor.precision
    assert result.probabilities is not None
    with rasterio.open(result.probabilities) as written:
        np.testing.assert_array_equal(written.read(1), probabilities_as_uint16(probabilities[1]))
    if size == (600, 700):
        assert_cloud_optimised(result.mask.read_bytes(), 700)
    assert result.nodata_pixels == (mask == -1).sum() > 0
    assert result.class_pixels == ((mask == 0).sum(), (mask == 1).sum())
    assert calls[-1][0] == calls[-1][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["likely.tif", "mask.tif", "scene.tif"]


def test_a_scene_without_georeferencing_and_a_bad_threshold(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", 100, 120)
    predictor = Predictor(VitWithConvolutions(), MEAN, STD)
    with ChipReader(path) as reader:
        with pytest.raises(ConfigError, match="threshold"):
            predictor.predict_scene(reader, tmp_path / "mask.tif", threshold=7)
        assert not (tmp_path / "mask.tif").exists()
        predictor.predict_scene(reader, tmp_path / "mask.tif", threshold=0.2)
    with rasterio.open(tmp_path / "mask.tif") as written:
        assert written.crs is None
        assert written.transform == Affine.identity()


@pytest.mark.real_data
def test_a_real_chip_is_predicted_on_its_own_grid(shared_data: Path, tmp_path: Path) -> None:
    predictor = Predictor(VitWithConvolutions(), MEAN, STD)
    with ChipReader(shared_data / "sen1floods11" / "S2Hand" / "Spain_7370579_S2Hand.tif") as reader:
        predictor.predict_scene(reader, tmp_path / "mask.tif")
        with rasterio.open(tmp_path / "mask.tif") as written:
            assert (written.crs, written.transform, written.shape) == (reader.grid.crs, reader.grid.transform, (512, 512))
