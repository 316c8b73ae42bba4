"""An HLS granule as it is delivered, one GeoTIFF a band, found by its file names and stacked into one file of six bands.

Names are those of the HLS user guide v2, section 6.4: `HLS.S30.T10TGS.2018285T190331.v2.0.B8A.tif`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from hls_foundry.chips.bands import ALIASES, BANDS
from hls_foundry.chips.reader import HLS_NODATA, acquisition_date, open_geotiff, read_pixels, same_crs
from hls_foundry.errors import ChipError
from hls_foundry.progress import Progress

BLOCK = 256
ROWS = 2 * BLOCK  # read and written at a time: 6 bands × 512 × 3660 pixels of int16 are 22 MB
CACHE_BYTES = 64 * 1024 * 1024
_BAND_FILE = re.compile(r"(?:(?P<name>.+)\.)?(?P<band>B(?:\d{2}|8A))\.tiff?", re.IGNORECASE)


@dataclass(frozen=True)
class Granule:
    """Six band files, in the order of `BANDS`. `name`: what their names have in common; `sensor`: landsat (L30) or sentinel2 (S30)."""

    name: str
    sensor: str
    files: tuple[Path, ...]


def find_granule(paths: Sequence[Path]) -> Granule:
    """The granule whose band files are `paths`, or lie in the one folder given; files of other bands may lie there too.

    Raises ChipError (one line): no band file, more than one granule, a band that is missing, or two files for one.
    """
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    where = str(folder) if folder else ", ".join(path.name for path in paths[:6])
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder else paths:
        if not (match := _BAND_FILE.fullmatch(path.name)):
            if folder:
                continue
            raise ChipError(f"{path} is not named as a band of HLS (….B02.tif): give six such files, their folder, or one stack")
        bands, band = found.setdefault(match["name"] or "", {}), match["band"].upper()
        if band in bands:
            raise ChipError(f"{where} has two files for band {band} ({bands[band].name}, {path.name}): give one")
        bands[band] = path
    if not found:
        raise ChipError(f"{where} has no band files of HLS (….B02.tif): give six such files, their folder, or one stack")
    if len(found) > 1:
        raise ChipError(f"{where} has {len(found)} granules ({', '.join(sorted(found)[:3])}, …): give the six files of one")
    name, bands = next(iter(found.items()))
    sensor = sensor_of(name, set(bands))
    wanted = {ours: band for band, ours in ALIASES[sensor].items()}
    if missing := [wanted[ours] for ours in BANDS if wanted[ours] not in bands]:
        product = "S30" if sensor == "sentinel2" else "L30"
        raise ChipError(f"{where} lacks {', '.join(missing)}: an HLS {product} granule needs {', '.join(wanted[ours] for ours in BANDS)}")
    return Granule(name or (folder.name if folder else paths[0].parent.name), sensor, tuple(bands[wanted[ours]] for ours in BANDS))


def sensor_of(name: str, bands: set[str]) -> str:
    """By the product in the name (S30, L30), else by the bands: B8A and B12 are Sentinel-2's (B11 is a thermal band of L30)."""
    if match := re.search(r"(?<![A-Z0-9])([SL])30(?![0-9])", name.upper()):
        return "sentinel2" if match[1] == "S" else "landsat"
    return "sentinel2" if bands & {"B8A", "B12"} else "landsat"


def stack_granule(granule: Granule, target: Path, progress: Progress | None = None) -> None:
    """Write the six bands as one tiled, compressed GeoTIFF, holding a few rows in memory.

    Values stay as they are; nodata, date and band names go along. Raises ChipError (one line) for files that cannot be read, have more
    than one band, or do not lie on one grid.
    """
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        sources = [open_geotiff(path, stack, str(path), None) for path in granule.files]
        profile = _common_profile(granule, sources)
        width, height = profile["width"], profile["height"]
        try:
            output = stack.enter_context(rasterio.open(target, "w", **profile))
            output.descriptions = BANDS
            if acquired := acquisition_date(sources[0].tags(), granule.name):
                output.update_tags(ACQUISITION_DATE=acquired.isoformat())
            for row in range(0, height, ROWS):
                window = Window(0, row, width, min(ROWS, height - row))
                for index, (source, path) in enumerate(zip(sources, granule.files, strict=True), 1):
                    output.write(read_pixels(source, str(path), 1, window), index, window=window)
                if progress:
                    progress(min(row + ROWS, height), height)
        except (RasterioError, OSError) as error:
            raise ChipError(f"{target} cannot be written ({' '.join(str(error).split())}): free some space in its folder") from None


def _common_profile(granule: Granule, sources: Sequence[Any]) -> dict[str, Any]:
    """Of the stack: the grid, type and nodata that all six share."""
    first = sources[0]
    for source, path in zip(sources, granule.files, strict=True):
        if source.count != 1:
            raise ChipError(f"{path} has {source.count} bands: a band file has one")
        same = (source.width, source.height) == (first.width, first.height) and source.transform.almost_equals(first.transform)
        if not same or not same_crs(source.crs, first.crs):
            raise ChipError(f"{path} is not on the grid of {granule.files[0].name}: give six files of one granule")
        if (source.dtypes[0], source.nodata) != (first.dtypes[0], first.nodata):
            raise ChipError(f"{path} has another type or nodata than {granule.files[0].name}: give six files of one granule")
    return {
        "driver": "GTiff",
        "count": len(sources),
        "width": first.width,
        "height": first.height,
        "dtype": first.dtypes[0],
        "crs": first.crs,
        "transform": first.transform,
        "nodata": HLS_NODATA if first.nodata is None and first.dtypes[0] in ("int16", "int32", "float32", "float64") else first.nodata,
        "interleave": "band",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 3 if first.dtypes[0].startswith("float") else 2,
        "num_threads": "all_cpus",
        "bigtiff": "if_safer",
    }
