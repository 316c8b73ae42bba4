"""Rasters that predictions become: cloud-optimised GeoTIFFs, on disk or in memory, and a PNG to look at."""

from __future__ import annotations

import errno
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, overload
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError  # what rasterio lets through when a file cannot be closed
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from hls_foundry.chips.scene import Grid
from hls_foundry.errors import FoundryError

MASK_NODATA = 255
PROBABILITY_SCALE = 1e-4
PROBABILITY_NODATA = 65535
"""Probabilities on disk are uint16, file value × 0.0001, as HLS scales reflectance: half of float32's size, fine enough."""

TINT = (255, 64, 32)  # of class 1 in overlays: seen on vegetation, soil and water alike
COG_OPTIONS: dict[str, Any] = {"compress": "DEFLATE", "blocksize": 256, "num_threads": "ALL_CPUS", "bigtiff": "IF_SAFER"}


def mask_as_uint8(mask: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Masks on disk: uint8 with 255 where the mask says −1."""
    return np.where(mask < 0, MASK_NODATA, mask).astype(np.uint8)


def probabilities_as_uint16(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Probabilities on disk: uint16 of 0.0001, 65535 where they are NaN."""
    scaled = np.nan_to_num(probabilities / np.float32(PROBABILITY_SCALE) + np.float32(0.5), nan=float(PROBABILITY_NODATA))
    stored: npt.NDArray[np.uint16] = scaled.astype(np.uint16)
    return stored


@overload
def write_cog(
    target: None,
    array: npt.NDArray[Any],
    grid: Grid,
    nodata: float | None,
    tags: Mapping[str, str] | None = None,
    descriptions: Sequence[str] = (),
    scale: float | None = None,
) -> bytes: ...
@overload
def write_cog(
    target: Path,
    array: npt.NDArray[Any],
    grid: Grid,
    nodata: float | None,
    tags: Mapping[str, str] | None = None,
    descriptions: Sequence[str] = (),
    scale: float | None = None,
) -> Path: ...
def write_cog(
    target: Path | None,
    array: npt.NDArray[Any],
    grid: Grid,
    nodata: float | None,
    tags: Mapping[str, str] | None = None,
    descriptions: Sequence[str] = (),
    scale: float | None = None,
) -> bytes | Path:
    """Write (H, W) or (bands, H, W) as cloud-optimised GeoTIFF with overviews: to `target`, atomically, or as bytes where it is None.

    `descriptions` name the bands; `scale` is the file's own factor from stored to true values. A grid without CRS is written without
    georeferencing. Raises FoundryError where `target` cannot be written.
    """
    bands = array[None] if array.ndim == 2 else array
    with MemoryFile() as memory:
        with memory.open(driver="COG", **_profile(bands, grid, nodata), **_cog_options(bands.dtype)) as dataset:
            _describe(dataset, tags, descriptions, scale)
            dataset.write(bands)
        content: bytes = memory.read()
    if target is None:
        return content
    write_atomically(target, content)
    return target


class CogStream:
    """A cloud-optimised GeoTIFF written from top to bottom in bounded memory; a context manager.

    The rows go to a plain GeoTIFF beside `target`; leaving the context turns it into the COG and renames that into place. After an
    error `target` is as it was before and nothing else stays. Raises FoundryError where the folder cannot be written.
    """

    def __init__(self, target: Path, bands: int, dtype: str, grid: Grid, nodata: float | None) -> None:
        self._target = target
        self._dtype = np.dtype(dtype)
        self._stack = ExitStack()
        try:
            free = shutil.disk_usage(_folder_of(target)).free
            if free < bands * grid.height * grid.width * self._dtype.itemsize:
                raise OSError(errno.ENOSPC, f"only {free / 1e6:.0f} MB are free")
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent))
            self._rows = Path(folder) / "rows.tif"
            shape = np.broadcast_to(np.empty((), self._dtype), (bands, grid.height, grid.width))
            self.dataset = self._stack.enter_context(
                rasterio.open(self._rows, "w", driver="GTiff", bigtiff="IF_SAFER", interleave="band", **_profile(shape, grid, nodata))
            )
        except (RasterioError, CPLE_BaseError, OSError) as error:
            self._stack.close()
            raise _unwritable(target, error) from None

    def describe(self, tags: Mapping[str, str] | None = None, descriptions: Sequence[str] = (), scale: float | None = None) -> None:
        """Tags, band names and the factor from stored to true values; before the first row."""
        _describe(self.dataset, tags, descriptions, scale)

    def write(self, row: int, rows: npt.NDArray[Any]) -> None:
        """(bands, n, W) at rows `row` to `row + n`."""
        try:
            self.dataset.write(rows, window=((row, row + rows.shape[1]), (0, rows.shape[2])))
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise _unwritable(self._target, error) from None

    def __enter__(self) -> CogStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if error is None:
                self._finish()

    def _finish(self) -> None:
        finished = self._rows.with_name("cog.tif")
        try:
            self.dataset.close()
            rasterio.shutil.copy(self._rows, finished, driver="COG", strict=False, **_cog_options(self._dtype))
            # GDAL only logs that a disk filled up while closing: read the last written blocks before the name is given.
            with rasterio.open(finished) as written:
                for index in written.indexes:
                    written.checksum(index)
            finished.replace(self._target)
        except (RasterioError, CPLE_BaseError, OSError) as problem:
            raise _unwritable(self._target, problem) from None


def write_atomically(target: Path, content: bytes) -> None:
    """Write the whole file or nothing. Raises FoundryError in one line."""
    try:
        temporary = _folder_of(target) / f".{target.name}.{uuid4().hex}"
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from None


def overlay_png(pixels: npt.NDArray[np.float32], mask: npt.NDArray[np.integer[Any]]) -> bytes:
    """PNG (RGBA) of the true-colour image with class 1 tinted and outlined; transparent where there is no data.

    `pixels`: reflectance (6, H, W). The stretch is one for all three colours, from the 2 % to the 98 % quantile, so hues stay true.
    """
    red_green_blue = pixels[[2, 1, 0]]
    # Quantiles of a regular sample of some 250,000 pixels: those of a whole scene to a thousandth, in a fraction of the time.
    step = max(1, int((mask.size / 250_000) ** 0.5))
    sample = red_green_blue[:, ::step, ::step]
    sample = sample[np.isfinite(sample)]
    low, high = np.quantile(sample, [0.02, 0.98]) if sample.size else (0.0, 1.0)
    gamma = (np.linspace(0.0, 1.0, 1024) ** (1 / 1.4) * 255).astype(np.uint8)
    stretched = (red_green_blue - np.float32(low)) * np.float32(1023 / max(high - low, 1e-4))
    image = gamma[np.nan_to_num(stretched, copy=False, posinf=0.0, neginf=0.0).clip(0, 1023).astype(np.uint16)]
    found = mask == 1
    outline = found & ~_eroded(found)
    for channel, tint in zip(image, TINT, strict=True):
        channel[found] = (channel[found].astype(np.uint16) * 2 + tint) // 3
        channel[outline] = tint
    alpha = np.where(mask < 0, 0, 255).astype(np.uint8)
    bands = np.concatenate([image, alpha[None]])
    with MemoryFile() as memory:
        with memory.open(driver="PNG", zlevel=3, **_profile(bands, Grid(mask.shape[1], mask.shape[0]), None)) as dataset:
            dataset.write(bands)
        content: bytes = memory.read()
    return content


def _eroded(found: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels whose four neighbours are found as well; the image's edge counts as found."""
    padded = np.pad(found, 1, constant_values=True)
    inner: npt.NDArray[np.bool_] = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def _profile(bands: npt.NDArray[Any], grid: Grid, nodata: float | None) -> dict[str, Any]:
    # Not catch_warnings: it is not safe with threads, and a grid without georeferencing is an ordinary case here.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    profile: dict[str, Any] = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    if grid.transform != Affine.identity():
        profile["transform"] = grid.transform
    if grid.crs is not None:
        profile["crs"] = grid.crs
    if nodata is not None:
        profile["nodata"] = nodata
    return profile


def _cog_options(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Classes (uint8) are thinned by majority in overviews, quantities by their mean."""
    if dtype == np.uint8:
        return COG_OPTIONS | {"overview_resampling": "mode"}
    return COG_OPTIONS | {"overview_resampling": "average", "predictor": "YES"}


def _describe(dataset: Any, tags: Mapping[str, str] | None, descriptions: Sequence[str], scale: float | None) -> None:
    if tags:
        dataset.update_tags(**tags)
    for index, description in enumerate(descriptions, start=1):
        dataset.set_band_description(index, description)
    if scale is not None:
        dataset.scales = (scale,) * dataset.count


def _folder_of(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def _unwritable(target: Path, error: Exception) -> FoundryError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return FoundryError(f"{target} cannot be written ({reason}): free some space or choose another folder")
