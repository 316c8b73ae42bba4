"""The reader: what GeoTIFFs it takes, what it makes of them, and what it refuses in one line."""

from __future__ import annotations

import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from rasterio.windows import Window

from hls_foundry.chips.reader import ChipReader, read_mask, tile_of
from hls_foundry.errors import ChipError

SIX = np.arange(6 * 64 * 80).reshape(6, 64, 80)
CUSTOM_UTM = (  # as hls_burn_scars writes it: no EPSG code anywhere
    'PROJCS["UTM Zone 10, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",-123],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)


def values(dtype: str) -> np.ndarray:
    return (SIX % 9000).astype(dtype)


def one_line(error: pytest.ExceptionInfo[ChipError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(("dtype", "scale"), [("int16", 1e-4), ("uint16", 1e-4), ("float32", 1.0), ("float64", 1.0)])
def test_integers_are_scaled_and_floats_are_reflectance(tmp_path: Path, write_tif: Any, dtype: str, scale: float) -> None:
    with ChipReader(write_tif(tmp_path / "a.tif", values(dtype))) as chip:
        pixels = chip.read()
        assert chip.band_indexes == (1, 2, 3, 4, 5, 6)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, values("float64") * scale, rtol=1e-6)


def test_scale_and_nodata_can_be_said(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "a.tif", values("float32"), nodata=7)
    with ChipReader(path, scale=0.0001, nodata=4.0) as chip:
        pixels = chip.read()
    assert np.isnan(pixels[:, 0, 4]).all()
    np.testing.assert_allclose(pixels[:, 0, 7], values("float64")[:, 0, 7] * 1e-4, rtol=1e-6)


def test_a_pixel_without_data_in_one_band_is_nan_in_all_six(tmp_path: Path, write_tif: Any) -> None:
    array = values("int16")
    array[2, 5, 6] = -9999
    with ChipReader(write_tif(tmp_path / "default.tif", array)) as chip:
        assert np.argwhere(np.isnan(chip.read()).any(axis=0)).tolist() == [[5, 6]]
        assert np.isnan(chip.read()[:, 5, 6]).all()
    with ChipReader(write_tif(tmp_path / "own.tif", array, nodata=0)) as chip:
        empty = np.isnan(chip.read()).all(axis=0)
    assert not empty[5, 6], "the file's own nodata is 0, so -9999 is a value"
    np.testing.assert_array_equal(empty, (array == 0).any(axis=0))


@pytest.mark.parametrize("nodata", [np.nan, -3.4028234663852886e38, -9999.0])
def test_float_nodata_and_non_finite_pixels_become_nan(tmp_path: Path, write_tif: Any, nodata: float) -> None:
    array = values("float32") / 10000
    array[0, 1, 1], array[3, 2, 2], array[4, 3, 3] = nodata, np.inf, np.nan
    with ChipReader(write_tif(tmp_path / "a.tif", array, nodata=nodata)) as chip:
        empty = np.isnan(chip.read())
    assert empty.all(axis=0).sum() == 3 == empty.any(axis=0).sum()


def test_nodata_that_the_dtype_cannot_hold_is_no_nodata(tmp_path: Path, write_tif: Any) -> None:
    with ChipReader(write_tif(tmp_path / "a.tif", values("uint16"))) as chip:
        assert np.isfinite(chip.read()).all()


def test_thirteen_bands_are_sentinel2(tmp_path: Path, write_tif: Any) -> None:
    array = np.stack([np.full((64, 64), index, np.int16) for index in range(1, 14)])
    with ChipReader(write_tif(tmp_path / "a.tif", array)) as chip:
        assert chip.band_indexes == (2, 3, 4, 9, 12, 13)
        np.testing.assert_allclose(chip.read()[:, 0, 0] * 1e4, [2, 3, 4, 9, 12, 13], rtol=1e-6)


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (("swir2", "swir1", "nir", "red", "green", "blue"), (6, 5, 4, 3, 2, 1)),
        (("BLUE", "GREEN", "RED", "NIR_BROAD", "NIR_NARROW", "SWIR_1", "SWIR_2"), (1, 2, 3, 5, 6, 7)),
        (("Blue", "Green", "Red", "nir", "nir08", "swir16", "swir22"), (1, 2, 3, 5, 6, 7)),
        (("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"), (2, 3, 4, 9, 10, 11)),
        (("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11"), (2, 3, 4, 5, 6, 7)),
        (("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7", "QA"), (1, 2, 3, 4, 5, 6)),
        (("what", "ever", "these", "six", "are", "called"), (1, 2, 3, 4, 5, 6)),
    ],
)
def test_band_descriptions_say_which_six(tmp_path: Path, write_tif: Any, descriptions: tuple[str, ...], expected: tuple[int, ...]) -> None:
    array = np.ones((len(descriptions), 64, 64), np.int16)
    with ChipReader(write_tif(tmp_path / "a.tif", array, descriptions=descriptions)) as chip:
        assert chip.band_indexes == expected


def test_bands_are_chosen_by_number_and_by_name(tmp_path: Path, write_tif: Any) -> None:
    names = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "thermal")
    path = write_tif(tmp_path / "a.tif", np.ones((8, 64, 64), np.int16), descriptions=names)
    with ChipReader(path, bands=(7, 6, 5, 4, 3, 2)) as chip:
        assert chip.band_indexes == (7, 6, 5, 4, 3, 2)
    with ChipReader(path, bands=("blue", "b3", "B4", 5, "swir1", "Thermal")) as chip:
        assert chip.band_indexes == (2, 3, 4, 5, 6, 8)
    with pytest.raises(ChipError) as error:
        ChipReader(path, bands=(1, 2, 3, 4, 5, 9))
    one_line(error, "no band 9", "8 bands", "data.bands")
    with pytest.raises(ChipError) as error:
        ChipReader(path, bands=("blue", "green", "red", "nir", "swir1", "ultraviolet"))
    one_line(error, "'ultraviolet'", "data.bands")
    with pytest.raises(ChipError, match="six"):
        ChipReader(path, bands=(1, 2, 3))


@pytest.mark.parametrize("count", [1, 3, 5, 7, 10, 14])
def test_another_count_without_names_is_refused(tmp_path: Path, write_tif: Any, count: int) -> None:
    path = write_tif(tmp_path / "a.tif", np.ones((count, 64, 64), np.int16))
    with pytest.raises(ChipError) as error:
        ChipReader(path)
    one_line(error, str(path), f"{count} band", "data.bands")


def test_windows_equal_the_same_part_of_the_whole(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "a.tif", values("int16"), tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    with ChipReader(path) as chip:
        np.testing.assert_array_equal(chip.read(Window(10, 20, 33, 17)), chip.read()[:, 20:37, 10:43])


def test_grid_and_location_of_a_crs_without_epsg_code(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "HLS.S30.T10TGS.2018285.v1.4_merged.tif", values("int16"), crs=CUSTOM_UTM)
    with ChipReader(path) as chip:
        scene = chip.scene()
    assert scene.grid.crs is not None
    assert scene.grid.crs.to_epsg() is None
    assert (scene.grid.width, scene.grid.height) == (80, 64)
    assert scene.location == pytest.approx((46.91, -120.36), abs=0.01)
    assert scene.acquired == date(2018, 10, 12)
    assert scene.pixels.shape == (6, 64, 80)


def test_location_in_degrees_is_latitude_first(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "a.tif", values("int16"), crs="EPSG:4326", transform=from_origin(-0.78, 38.12, 1e-4, 1e-4))
    with ChipReader(path) as chip:
        assert chip.location == pytest.approx((38.1168, -0.776))


def test_files_without_georeferencing_are_read_without_a_warning(tmp_path: Path, write_tif: Any, capfd: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_tif(tmp_path / "a.tif", values("int16"), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (path, path.read_bytes()):
            with ChipReader(source) as chip:
                assert chip.grid.crs is None
                assert chip.grid.transform.is_identity
                assert chip.location is None
                assert chip.read().shape == (6, 64, 80)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "tags", "expected"),
    [
        ("HLS.S30.T10TGS.2018285.v1.4_merged", {}, date(2018, 10, 12)),
        ("HLS.L30.T13RCN.2024128T173909.v2.0", {}, date(2024, 5, 7)),
        ("S2B_MSIL2A_20240507T173909_N0510_R098_T13RCN", {}, date(2024, 5, 7)),
        ("HLS.S30.T10TGS.2018285.v1.4", {"SENSING_TIME": "2018-10-13T17:55:57.208242Z"}, date(2018, 10, 13)),
        ("HLS.S30.T10TGS.2018285.v1.4", {"TIFFTAG_DATETIME": "2022:01:01 00:00:00"}, date(2018, 10, 12)),
        ("chip", {"TIFFTAG_DATETIME": "2022:01:02 00:00:00"}, date(2022, 1, 2)),
        ("chip", {"ACQUISITION_DATE": "2019-02-30"}, None),
        ("Spain_7370579", {}, None),
    ],
)
def test_acquisition_date_from_tags_or_name(tmp_path: Path, write_tif: Any, name: str, tags: dict[str, str], expected: date | None) -> None:
    with ChipReader(write_tif(tmp_path / f"{name}.tif", values("int16"), tags=tags)) as chip:
        assert chip.acquired == expected


def test_tile_from_the_name() -> None:
    assert tile_of("subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4") == "10TGS"
    assert tile_of("S2B_MSIL2A_20240507T173909_N0510_R098_T13RCN_20240507T205106") == "13RCN"
    assert tile_of("Spain_7370579") == ""


@pytest.mark.parametrize("keep", [5, 8, 200, 0.5, 0.98])
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_truncated_files_are_named(tmp_path: Path, write_tif: Any, keep: float, compress: str | None, capfd: Any) -> None:
    whole = write_tif(tmp_path / "a.tif", values("int16"), compress=compress).read_bytes()
    cut = whole[: int(keep if keep > 1 else keep * len(whole))]
    path = tmp_path / "cut.tif"
    path.write_bytes(cut)
    for source, where in ((path, str(path)), (cut, "the image")):
        with pytest.raises(ChipError) as error, ChipReader(source) as chip:
            chip.read()
        one_line(error, where, "truncated or damaged")
        assert str(error.value).count(".tif") == (1 if source is path else 0)
        assert "vsimem" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for content, words in [(b"", "empty"), (b"hello there", "not a TIFF"), (b"\x89PNG\r\n", "not a TIFF")]:
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(ChipError) as error:
                ChipReader(source)
            one_line(error, words)
    with pytest.raises(ChipError, match="does not exist"):
        ChipReader(tmp_path / "none.tif")
    with pytest.raises(ChipError) as error:
        ChipReader(tmp_path)
    one_line(error, str(tmp_path), "cannot be read")


@pytest.mark.parametrize(
    "address", ["/vsicurl/http://127.0.0.1:1/a.tif", "http://127.0.0.1:1/a.tif", "s3://bucket/a.tif", "zip://a.zip!a.tif"]
)
def test_addresses_are_not_opened(address: str) -> None:
    with pytest.raises(ChipError) as error:
        ChipReader(address)
    one_line(error, "does not exist")


def test_a_vrt_that_points_to_another_file_is_not_opened(tmp_path: Path, write_tif: Any) -> None:
    secret = write_tif(tmp_path / "secret.tif", values("int16"))
    vrt = tmp_path / "a.tif"
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{b}"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
        for b in range(1, 7)
    )
    vrt.write_text(f'<VRTDataset rasterXSize="80" rasterYSize="64">{bands}</VRTDataset>')
    with rasterio.open(vrt) as dataset:
        assert dataset.count == 6, "GDAL itself would follow it"
    for source in (vrt, vrt.read_bytes()):
        with pytest.raises(ChipError, match="not a TIFF"):
            ChipReader(source)


def test_sidecar_files_are_not_looked_at(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "a.tif", values("int16"))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>3</NoDataValue></PAMRasterBand></PAMDataset>")
    with ChipReader(path) as chip:
        assert chip.nodata is None


def test_odd_file_names_are_names(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "plain.tif", values("int16")).rename(tmp_path / "zip+a #1?x=%20!b.tif")
    with ChipReader(path) as chip:
        assert chip.name == "zip+a #1?x=%20!b"
        assert chip.read().shape == (6, 64, 80)


def sparse_header(width: int, height: int, **options: Any) -> bytes:
    """A GeoTIFF of a few kilobytes that claims width × height × 6 pixels."""
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=width, height=height, count=6, dtype="int16", SPARSE_OK=True, BIGTIFF="YES", **options):
            pass
        return bytes(memory.read())


def test_a_header_that_claims_too_much_is_refused_before_reading() -> None:
    with pytest.warns(NotGeoreferencedWarning):
        bomb = sparse_header(40_000, 40_000, tiled=True, blockxsize=4096, blockysize=4096)
    assert len(bomb) < 1_000_000
    with pytest.raises(ChipError) as error:
        ChipReader(bomb, max_pixels=4096 * 4096)
    one_line(error, "40000×40000", "16,777,216")


def test_a_small_image_in_one_huge_block_is_refused() -> None:
    with pytest.warns(NotGeoreferencedWarning):
        bomb = sparse_header(100, 100, tiled=True, blockxsize=16384, blockysize=16384)
    with pytest.raises(ChipError) as error:
        ChipReader(bomb, max_pixels=10_000)
    one_line(error, "blocks of 16384×16384")


def test_fifty_thousand_bands_are_refused() -> None:
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 50_000, 278: 64, 279: 64}  # TIFF 6.0: 277 is SamplesPerPixel
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items())
    tiff = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + b"\0" * 100
    with pytest.raises(ChipError) as error:
        ChipReader(tiff)
    one_line(error, "the image", "50000 bands")


def test_many_threads_read_at_once(tmp_path: Path, write_tif: Any) -> None:
    paths = [write_tif(tmp_path / f"{i}.tif", np.full((6, 64, 64), i, np.int16), compress="deflate") for i in range(1, 17)]

    def mean(path: Path) -> float:
        with ChipReader(path) as chip:
            return round(float(chip.read().mean()) * 1e4, 3) if chip.location else -1.0

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(mean, paths * 8)) == [float(i) for i in range(1, 17)] * 8


def test_masks_have_three_values(tmp_path: Path, write_tif: Any) -> None:
    labels = np.array([[0, 1, 255], [1, 255, 0]])
    expected = [[0, 1, -1], [1, -1, 0]]
    for dtype in ("uint8", "int16", "float32"):
        mask = read_mask(write_tif(tmp_path / "a.tif", labels.astype(dtype)))
        assert mask.dtype == np.int16
        assert mask.tolist() == expected
    assert read_mask(write_tif(tmp_path / "a.tif", np.where(labels == 255, 9, labels).astype("int16"), nodata=9)).tolist() == expected
    assert read_mask(write_tif(tmp_path / "a.tif", np.where(labels == 255, -1, labels).astype("int16"))).tolist() == expected
    assert read_mask(write_tif(tmp_path / "a.tif", np.where(labels == 255, np.nan, labels).astype("float32"))).tolist() == expected


def test_a_mask_that_declares_background_as_nodata_keeps_its_background(tmp_path: Path, write_tif: Any) -> None:
    assert read_mask(write_tif(tmp_path / "a.tif", np.array([[0, 1]], "uint8"), nodata=0)).tolist() == [[0, 1]]


def test_unknown_mask_values_are_named(tmp_path: Path, write_tif: Any) -> None:
    path = write_tif(tmp_path / "a.tif", np.array([[0, 1, 2, 7], [0, 1, 2, 0]], "uint8"))
    with pytest.raises(ChipError) as error:
        read_mask(path)
    one_line(error, str(path), "2, 7", "unknown mask values")
    with pytest.raises(ChipError, match="6 bands"):
        read_mask(write_tif(tmp_path / "b.tif", values("int16")))


@pytest.mark.real_data
def test_real_chips_and_masks(shared_data: Path) -> None:
    with ChipReader(shared_data / "sen1floods11/S2Hand/Spain_7370579_S2Hand.tif") as chip:
        assert chip.band_indexes == (2, 3, 4, 9, 12, 13)
        assert chip.location == pytest.approx((38.1058, -0.7589), abs=1e-3)
        pixels = chip.read()
    assert 0.05 < np.nanmean(pixels) < 0.3
    labels, counts = np.unique(read_mask(shared_data / "sen1floods11/LabelHand/Spain_7370579_LabelHand.tif"), return_counts=True)
    assert labels.tolist() == [-1, 0, 1]
    assert counts[2] / counts.sum() == pytest.approx(0.267, abs=1e-3)
    with pytest.raises(ChipError, match="10 bands"):
        ChipReader(shared_data / "hls/hls_l30_10band_224.tif")
    with ChipReader(shared_data / "hls/hls_l30_10band_224.tif", bands=(2, 3, 4, 5, 6, 7), scale=1e-4) as chip:
        assert 0.2 < np.nanmean(chip.read()[3]) < 0.4
    scar = read_mask(shared_data / "hls/subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif")
    assert (scar == 1).mean() == pytest.approx(0.193, abs=1e-3)
