"""The inventory: a table with one row a chip that says what its files hold, with digests of the pixels and one line for what is wrong."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
from affine import Affine
from rasterio.crs import CRS

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.histograms import BandHistograms, count_sorted, empty_counts
from hls_foundry.chips.layouts import ChipFiles, find_chips
from hls_foundry.chips.reader import ChipReader, clean_labels, degrees_transformer, open_geotiff, read_pixels, same_crs, tile_of
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import ChipError

Progress = Callable[[int, int], None]
"""Told (done, total) as work goes on."""

MAX_CHIP_PIXELS = 8192 * 8192
"""Chips are cut-outs: what claims more is a whole scene or a damaged header, and does not fit in memory twice."""

SAMPLE_SIDE = 128  # statistics of reflectance come from about this many rows and columns of a chip
METRES_PER_DEGREE = 111_320.0

NO_NUMBERS: dict[str, float] = {f"{band}_{what}": np.nan for band in BANDS for what in ("mean", "std", "q02", "q50", "q98")}
EMPTY_ROW: dict[str, Any] = {
    "chip": "", "image": "", "mask": "", "listed_split": "", "error": "", "tile": "", "date": "", "crs": "", "epsg": 0,
    "width": 0, "height": 0, "count": 0, "dtype": "", "mask_dtype": "", "resolution_m": np.nan, "transform": (),
    "left": np.nan, "bottom": np.nan, "right": np.nan, "top": np.nan, "same_grid": False, "grid_problem": "",
    "digest": "", "mask_digest": "", "nodata_share": np.nan, "nonfinite_share": np.nan, "cloud_share": np.nan,
    "mask_values": (), "positive_share": np.nan, "ignored_share": np.nan, **NO_NUMBERS,
}  # fmt: skip
"""The columns in order, with what stands where a file did not get so far."""

COUNTS = "counts"  # of a chip's sampled pixels by reflectance: for the sum over all chips, not for the table


@dataclass(frozen=True, eq=False)
class Inventory:
    """`table`: one row a chip, the columns of `EMPTY_ROW`; `image` and `mask` are relative to `root`.

    `histograms`: of the sampled pixels of all chips that were read, also those that were left out later; None where nobody counted.
    """

    table: pd.DataFrame
    root: Path
    task: str
    histograms: BandHistograms | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the sorted digests of the chips' pixels: the same for the same content under other names or compression."""
        lines = sorted(f"{row.digest} {row.mask_digest} {row.error}" for row in self.table[["digest", "mask_digest", "error"]].itertuples())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_inventory(
    root: Path, task: TaskConfig, data: DataConfig, *, workers: int | None = None, progress: Progress | None = None
) -> Inventory:
    """Read every chip below `root` once, in threads, and describe it.

    Columns, beside names and files: `error` ("" = fine, else one line); `tile`, `date` (ISO) from tags or name; `crs`, `epsg` (0 =
    none); `resolution_m`; `transform` (a, b, c, d, e, f); `left` … `top` in degrees (EPSG:4326, NaN = not georeferenced);
    `same_grid` and `grid_problem` of image against mask; `digest` (SHA-256 of the six bands' pixels as stored, before scaling) and
    `mask_digest`; `nodata_share`, `nonfinite_share` (NaN or infinite and not nodata), `positive_share`, `ignored_share`: shares of
    all pixels; `mask_values`: those in the file. `cloud_share` (see `cloudy`) and `{band}_mean`, `_std`, `_q02`, `_q50`, `_q98`
    (reflectance) come from every n-th row and column, about 128 × 128 pixels a chip, without nodata.

    A file that cannot be read is a row with `error`. Raises SourceError for a missing or empty folder or another layout.
    """
    chips = find_chips(root, task.layout)
    rows: list[dict[str, Any]] = [{}] * len(chips)
    counts = empty_counts()
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="inventory")
    try:
        futures = {pool.submit(describe_chip, chip, root, data): index for index, chip in enumerate(chips)}
        for done, future in enumerate(as_completed(futures), 1):
            row = future.result()
            counts += row.pop(COUNTS, 0)
            rows[futures[future]] = row
            if progress:
                progress(done, len(chips))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: what has not begun never does
    histograms = BandHistograms(counts, tuple(task.mean), tuple(task.std))
    return Inventory(pd.DataFrame(rows, columns=list(EMPTY_ROW)), root, task.name, histograms)


def describe_chip(chip: ChipFiles, root: Path, data: DataConfig) -> dict[str, Any]:
    """One row of the inventory, and in `COUNTS` how its pixels are spread. Never raises for what is in the files."""
    row = dict(EMPTY_ROW, chip=chip.name, listed_split=chip.listed_split, tile=tile_of(chip.name))
    row["image"] = chip.image.relative_to(root).as_posix() if chip.image else ""
    row["mask"] = chip.mask.relative_to(root).as_posix() if chip.mask else ""
    errors = []
    grid: _Place | None = None
    if chip.image is None:
        errors.append(f"{row['mask']} has no image: add it or remove the mask")
    else:
        try:
            with ChipReader(
                chip.image, bands=data.bands, scale=data.scale, nodata=data.nodata, max_pixels=MAX_CHIP_PIXELS, name=row["image"]
            ) as reader:
                grid = _Place(reader.grid.width, reader.grid.height, reader.transform, reader.grid.crs)
                row |= _header(reader, grid)
                row |= _pixels(reader)
            errors += _pixel_errors(row)
        except ChipError as error:
            errors.append(str(error))
    if chip.mask is None:
        errors.append(f"{row['image']} has no mask: add it or remove the image")
    else:
        try:
            row |= _mask(chip.mask, row["mask"], grid)
        except _MaskError as error:
            row |= error.known
            errors.append(str(error))
        except ChipError as error:
            errors.append(str(error))
    if row["grid_problem"]:
        errors.append(f"{row['mask']} does not lie on its image: {row['grid_problem']}")
    row["error"] = "; ".join(errors)
    return row


def cloudy(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Bright, hazy, white and not snow: reflectance (6, …) → boolean (…).

    Fmask's basic spectral tests (Zhu & Woodcock 2012, eq. 1–4): HOT = blue − 0.5 red > 0.08, whiteness < 0.5, NDSI < 0.6,
    NIR / SWIR 1 > 0.75 (bright soil is below), with blue > 0.2 for the thin edges it takes too many of. On the labelled Sentinel-2
    scene of ukis-csmask it finds 88 % of the cloud pixels, and 91 % of what it finds is cloud. NaN is not cloudy.
    """
    blue, green, red, nir, swir1, _ = pixels
    with np.errstate(divide="ignore", invalid="ignore"):
        visible = (blue + green + red) / 3
        whiteness = (np.abs(blue - visible) + np.abs(green - visible) + np.abs(red - visible)) / visible
        snow = (green - swir1) / (green + swir1)
        found: npt.NDArray[np.bool_] = (blue > 0.2) & (blue - 0.5 * red > 0.08) & (whiteness < 0.5) & (snow < 0.6) & (nir > 0.75 * swir1)
    return found


@dataclass(frozen=True)
class _Place:
    """A file's own grid: its transform is kept even where it has no CRS."""

    width: int
    height: int
    transform: Affine
    crs: CRS | None


class _MaskError(ChipError):
    """A mask that can be described and must not be used."""

    def __init__(self, message: str, known: dict[str, Any]) -> None:
        super().__init__(message)
        self.known = known


def _header(reader: ChipReader, place: _Place) -> dict[str, Any]:
    known = {
        "date": reader.acquired.isoformat() if reader.acquired else "",
        "width": place.width,
        "height": place.height,
        "count": reader.count,
        "dtype": str(reader.dtype),
        "transform": tuple(place.transform)[:6],
    }
    if place.crs is None:
        return known
    wkt = place.crs.to_wkt()
    name, epsg, metres = _crs_facts(wkt)
    known |= {"crs": name, "epsg": epsg, "resolution_m": float(abs(place.transform.determinant) ** 0.5 * metres)}
    to_degrees = degrees_transformer(wkt)
    if to_degrees:
        x, y = _border(place)
        longitude, latitude = (np.asarray(values) for values in to_degrees.transform(x, y))
        if np.isfinite(longitude).all() and np.isfinite(latitude).all():
            if np.ptp(longitude) > 180:  # across the date line
                longitude = np.where(longitude < 0, longitude + 360, longitude)
            edges = (longitude.min(), latitude.min(), longitude.max(), latitude.max())
            known |= dict(zip(("left", "bottom", "right", "top"), map(float, edges), strict=True))
    return known


def _border(place: _Place) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x and y of the corners and the middles of the edges, in the file's CRS."""
    column = np.array([0, 0.5, 1, 1, 1, 0.5, 0, 0]) * place.width
    row = np.array([0, 0, 0, 0.5, 1, 1, 1, 0.5]) * place.height
    a, b, c, d, e, f = tuple(place.transform)[:6]
    return a * column + b * row + c, d * column + e * row + f


@lru_cache(maxsize=512)
def _crs_facts(wkt: str) -> tuple[str, int, float]:
    """Name (EPSG:… or WKT), EPSG code (0 = none), and metres of one unit of the axes."""
    try:
        crs = pyproj.CRS.from_wkt(wkt)
    except pyproj.exceptions.ProjError:
        return wkt, 0, np.nan
    epsg = crs.to_epsg(min_confidence=100) or 0
    metres = METRES_PER_DEGREE if crs.is_geographic else float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else np.nan
    return (f"EPSG:{epsg}" if epsg else wkt), epsg, metres


def _pixels(reader: ChipReader) -> dict[str, Any]:
    """Digest and shares over all pixels, statistics over the sample."""
    raw = reader.read_raw(out=_buffer((len(BANDS), reader.grid.height, reader.grid.width), reader.dtype))
    digest = hashlib.sha256(f"{raw.dtype.newbyteorder('<').str} {raw.shape}".encode())
    digest.update(raw.data)
    empty = reader.nodata_pixels(raw)
    nonfinite = 0.0
    # Minimum and maximum carry any NaN or infinity: two quick passes instead of a boolean copy of every band.
    if raw.dtype.kind == "f" and not (np.isfinite(raw.min()) and np.isfinite(raw.max())):
        nonfinite = float((~np.isfinite(raw).all(axis=0) & ~empty).mean())
    known: dict[str, Any] = {"digest": digest.hexdigest(), "nodata_share": float(empty.mean()), "nonfinite_share": nonfinite}
    rows, columns = (max(1, round(side / SAMPLE_SIDE)) for side in raw.shape[1:])
    sample = reader.reflectance(np.ascontiguousarray(raw[:, ::rows, ::columns])).reshape(len(BANDS), -1)
    sample = sample[:, np.isfinite(sample[0])]
    if not sample.size:
        return known
    known["cloud_share"] = float(cloudy(sample).mean())
    sample.sort(axis=1)
    known[COUNTS] = count_sorted(sample)
    quantiles = [sample[:, round(q * (sample.shape[1] - 1))] for q in (0.02, 0.5, 0.98)]
    statistics = (sample.mean(axis=1, dtype=np.float64), sample.std(axis=1, dtype=np.float64), *quantiles)
    for what, values in zip(("mean", "std", "q02", "q50", "q98"), statistics, strict=True):
        known |= {f"{band}_{what}": float(value) for band, value in zip(BANDS, values, strict=True)}
    return known


_thread = threading.local()


def _buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """This thread's array to read into: fresh pages for every chip cost as much time as reading it."""
    size = int(np.prod(shape)) * dtype.itemsize
    if getattr(_thread, "memory", np.empty(0, np.uint8)).size < size:
        _thread.memory = np.empty(size, np.uint8)
    buffer: npt.NDArray[Any] = _thread.memory[:size].view(dtype).reshape(shape)
    return buffer


def _pixel_errors(row: dict[str, Any]) -> list[str]:
    errors = []
    if row["nonfinite_share"] > 0:
        pixels = round(row["nonfinite_share"] * row["width"] * row["height"])
        errors.append(f"{row['image']} has {pixels} pixels that are NaN or infinite and not nodata: set them to the file's nodata")
    if row["nodata_share"] == 1:
        errors.append(f"{row['image']} is all nodata: remove the chip, or check data.nodata")
    return errors


def _mask(path: Path, name: str, image: _Place | None) -> dict[str, Any]:
    with ExitStack() as stack:
        dataset = open_geotiff(path, stack, name, MAX_CHIP_PIXELS)
        if dataset.count != 1:
            raise ChipError(f"{name} has {dataset.count} bands: a mask has one")
        known: dict[str, Any] = {"mask_dtype": dataset.dtypes[0]}
        if image is not None:
            problem = grid_problem(image, _Place(dataset.width, dataset.height, dataset.transform, dataset.crs))
            known |= {"same_grid": not problem, "grid_problem": problem}
        labels, nodata = read_pixels(dataset, name, 1, None), dataset.nodata
    known["mask_values"] = _values(labels)
    try:
        mask = clean_labels(labels, nodata, name)
    except ChipError as error:
        raise _MaskError(str(error), known) from None
    known["mask_digest"] = hashlib.sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()
    known["positive_share"] = float(np.count_nonzero(mask == 1) / mask.size)
    known["ignored_share"] = float(np.count_nonzero(mask == -1) / mask.size)
    return known


def _values(labels: npt.NDArray[Any]) -> tuple[float, ...]:
    """The values in the file, sorted; whole numbers as int. Sorting all pixels only where there are unusual ones."""
    usual = {value: np.count_nonzero(labels == value) for value in (-1, 0, 1, 255)}
    if sum(usual.values()) == labels.size:
        return tuple(value for value, count in usual.items() if count)
    return tuple(int(value) if float(value).is_integer() else float(value) for value in np.unique(labels).tolist())


def grid_problem(image: _Place, mask: _Place) -> str:
    """In words, how the mask's grid differs from the image's: size, a corner more than half a pixel off, or the CRS; "" = it does not.

    Two CRS written differently are the same here if they put the corners within half a pixel: public masks carry an EPSG code where
    their images carry custom WKT, and transforms that differ by float noise.
    """
    if (image.width, image.height) != (mask.width, mask.height):
        return f"the mask has {mask.width}×{mask.height} pixels, the image {image.width}×{image.height}"
    if (image.crs is None) != (mask.crs is None):
        return f"the {'image' if image.crs is None else 'mask'} has no CRS"
    (x, y), (mask_x, mask_y) = _border(image), _border(mask)
    if not same_crs(image.crs, mask.crs):
        between = _between(mask.crs.to_wkt(), image.crs.to_wkt())  # type: ignore[union-attr]
        if between is None:
            return "the CRS differ"
        mask_x, mask_y = (np.asarray(values) for values in between.transform(mask_x, mask_y))
    pixel = abs(image.transform.determinant) ** 0.5
    off = float(np.hypot(x - mask_x, y - mask_y).max() / pixel) if pixel else np.inf
    if off <= 0.5:
        return ""
    what = "their places differ" if same_crs(image.crs, mask.crs) else "their CRS differ"
    return f"{what}, by {off:,.1f} pixels" if np.isfinite(off) else what


@lru_cache(maxsize=512)
def _between(one: str, other: str) -> pyproj.Transformer | None:
    try:
        return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(one), pyproj.CRS.from_wkt(other), always_xy=True)
    except pyproj.exceptions.ProjError:
        return None
