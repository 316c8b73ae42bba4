"""Six band files of an HLS granule are found by their names and stacked unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hls_foundry.chips.granule import ROWS, find_granule, stack_granule
from hls_foundry.chips.reader import ChipReader
from hls_foundry.errors import ChipError

TifWriter = Callable[..., Path]

S30 = ("B02", "B03", "B04", "B8A", "B11", "B12")
L30 = ("B02", "B03", "B04", "B05", "B06", "B07")
S30_NAME, L30_NAME = "HLS.S30.T10TGS.2018285T190331.v2.0", "HLS.L30.T10TGS.2020250T184536.v2.0"
S30_DELIVERED = (
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B8A",
    "B09",
    "B10",
    "B11",
    "B12",
    "Fmask",
    "SAA",
    "SZA",
    "VAA",
    "VZA",
)
L30_DELIVERED = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11", "Fmask", "SAA", "SZA", "VAA", "VZA")


def deliver(
    write_tif: TifWriter, folder: Path, name: str, bands: tuple[str, ...], *, size: int = 80, width: int = 96
) -> dict[str, np.ndarray]:
    """The files of a granule, as they are downloaded; what each band holds."""
    held = {}
    for index, band in enumerate(bands):
        held[band] = np.random.default_rng(index).integers(100, 4000, (size, width)).astype(np.int16)
        held[band][:3, :3] = -9999
        write_tif(folder / (f"{name}.{band}.tif" if name else f"{band}.tif"), held[band], nodata=-9999)
    return held


@pytest.mark.parametrize(
    ("name", "delivered", "wanted", "date"),
    [(S30_NAME, S30_DELIVERED, S30, "2018-10-12"), (L30_NAME, L30_DELIVERED, L30, "2020-09-06")],
)
def test_the_folder_of_a_granule_is_stacked_in_our_order(
    write_tif: TifWriter, tmp_path: Path, name: str, delivered: tuple[str, ...], wanted: tuple[str, ...], date: str
) -> None:
    held = deliver(write_tif, tmp_path / "granule", name, delivered)
    granule = find_granule([tmp_path / "granule"])
    assert granule.name == name
    stack_granule(granule, tmp_path / "stack.tif")
    with ChipReader(tmp_path / "stack.tif") as reader:
        assert (reader.read_raw() == np.stack([held[band] for band in wanted])).all()
        assert reader.nodata == -9999
        assert reader.acquired is not None
        assert reader.acquired.isoformat() == date
        assert reader.grid.crs is not None
        assert (reader.grid.width, reader.grid.height) == (96, 80)
        assert np.isnan(reader.read()[:, :3, :3]).all()


@pytest.mark.parametrize("bands", [S30, L30])
def test_plain_names_in_any_order_are_enough(write_tif: TifWriter, tmp_path: Path, bands: tuple[str, ...]) -> None:
    held = deliver(write_tif, tmp_path / "scene", "", bands)
    granule = find_granule([tmp_path / "scene" / f"{band}.tif" for band in reversed(bands)])
    assert granule.name == "scene"
    stack_granule(granule, tmp_path / "stack.tif")
    with ChipReader(tmp_path / "stack.tif") as reader:
        assert (reader.read_raw() == np.stack([held[band] for band in bands])).all()


def test_scenes_taller_than_one_pass_and_their_progress(write_tif: TifWriter, tmp_path: Path) -> None:
    held = deliver(write_tif, tmp_path / "scene", "", S30, size=ROWS + 100)
    seen: list[tuple[int, int]] = []
    stack_granule(find_granule([tmp_path / "scene"]), tmp_path / "stack.tif", lambda done, total: seen.append((done, total)))
    with rasterio.open(tmp_path / "stack.tif") as dataset:
        assert (dataset.read() == np.stack([held[band] for band in S30])).all()
    assert seen == [(ROWS, ROWS + 100), (ROWS + 100, ROWS + 100)]


def test_what_is_no_whole_granule_is_one_line(write_tif: TifWriter, tmp_path: Path) -> None:
    deliver(write_tif, tmp_path / "short", S30_NAME, S30[:-1])
    with pytest.raises(ChipError, match=r"lacks B12: an HLS S30 granule needs B02, B03, B04, B8A, B11, B12"):
        find_granule([tmp_path / "short"])
    deliver(write_tif, tmp_path / "two", S30_NAME, S30)
    deliver(write_tif, tmp_path / "two", L30_NAME, L30)
    with pytest.raises(ChipError, match="2 granules"):
        find_granule([tmp_path / "two"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ChipError, match="no band files"):
        find_granule([tmp_path / "none"])
    with pytest.raises(ChipError, match="not named as a band"):
        find_granule([tmp_path / "chip.tif", tmp_path / "two"])
    twice = [tmp_path / "a" / "B02.tif", tmp_path / "b" / "B02.tif"]
    with pytest.raises(ChipError, match="two files for band B02"):
        find_granule(twice)


def test_bands_of_different_grids_or_types_are_refused(write_tif: TifWriter, tmp_path: Path) -> None:
    deliver(write_tif, tmp_path / "scene", "", S30)
    write_tif(tmp_path / "scene" / "B12.tif", np.zeros((40, 48), np.int16), nodata=-9999)
    with pytest.raises(ChipError, match=r"B12\.tif is not on the grid of B02\.tif"):
        stack_granule(find_granule([tmp_path / "scene"]), tmp_path / "stack.tif")
    write_tif(tmp_path / "scene" / "B12.tif", np.zeros((80, 96), np.float32))
    with pytest.raises(ChipError, match="another type"):
        stack_granule(find_granule([tmp_path / "scene"]), tmp_path / "stack.tif")
    (tmp_path / "scene" / "B12.tif").write_bytes(b"")
    with pytest.raises(ChipError, match="is empty"):
        stack_granule(find_granule([tmp_path / "scene"]), tmp_path / "stack.tif")
