"""Reads six-band chips, scenes and masks from one GeoTIFF each: a file on disk, or bytes that a stranger sent.

Only GDAL's GeoTIFF driver is ever asked, and it sees no other file than the one given: a VRT or any other text that points to
further files or addresses is not opened, and no sidecar (.aux.xml, .ovr, .tfw) is looked for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.session import DummySession
from rasterio.windows import Window

from hls_foundry.chips.bands import ALIASES, BANDS, SENTINEL2_13
from hls_foundry.chips.scene import Grid, Scene
from hls_foundry.errors import ChipError

HLS_NODATA = -9999.0
"""What counts as nodata where a file names none (HLS user guide v2, table 6)."""

GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0 and BigTIFF, little and big endian
MAX_BANDS = 512  # a hyperspectral cube has 200 to 400
BLOCK_BYTES_PER_PIXEL = 48  # six bands of float64: what one block of a file within `max_pixels` may unpack to
SMALLEST_BLOCK_LIMIT = 64 * 1024 * 1024

COMMON_NAMES = {
    "blue": "blue", "green": "green", "red": "red",
    "nirnarrow": "nir", "narrownir": "nir", "nir08": "nir", "nir8a": "nir", "nir": "nir",
    "swir1": "swir1", "swir16": "swir1", "swir2": "swir2", "swir22": "swir2",
}  # fmt: skip
"""Normalised names → ours, the narrow NIR before the broad one. swir16 and swir22: STAC eo:common_name."""


class ChipReader:
    """One open GeoTIFF as six bands of surface reflectance; a context manager, one to a thread.

    `source`: path of a local file (never a URL), or the file's bytes. `bands`: six band numbers (from 1) or names, or "auto":
    by the file's band descriptions, else exactly six bands as they are, else thirteen as Sentinel-2. `scale`: file value ×
    scale = reflectance; "auto" is 0.0001 for integers and 1 for floats. `nodata` overrides the file's own; without either,
    −9999. `max_pixels`: refuse files of more pixels (width × height), judged by the header before anything is unpacked.
    `name` is what errors call the file (default: the path, or "the image" for bytes).

    Raises ChipError (one line) for what is missing, empty, not a TIFF, truncated, too large, or has other bands.
    """

    def __init__(
        self,
        source: Path | str | bytes,
        *,
        bands: Literal["auto"] | tuple[int | str, ...] = "auto",
        scale: Literal["auto"] | float = "auto",
        nodata: float | None = None,
        max_pixels: int | None = None,
        name: str | None = None,
    ) -> None:
        self._where = name or ("the image" if isinstance(source, bytes) else str(source))
        self._stack = ExitStack()
        try:
            dataset = self._dataset = open_geotiff(source, self._stack, self._where, max_pixels)
            self.name: str = name or ("scene" if isinstance(source, bytes) else Path(source).stem)
            self.count: int = dataset.count
            self.dtypes: tuple[str, ...] = tuple(dataset.dtypes)
            self.nodata: float | None = nodata if nodata is not None else dataset.nodata
            self.transform: Affine = dataset.transform  # the file's own, even without a CRS
            self.grid = Grid(dataset.width, dataset.height, *((self.transform, dataset.crs) if dataset.crs else ()))
            self.block_rows: int = max(rows for rows, _ in dataset.block_shapes)  # unpacked together, at the least
            self.band_indexes = select_bands(dataset.count, dataset.descriptions, bands, self._where)
            self.dtype: np.dtype[Any] = np.result_type(*(np.dtype(self.dtypes[index - 1]) for index in self.band_indexes))
            if self.dtype.kind not in "iuf":
                raise ChipError(f"{self._where} holds {self.dtype} values: reflectance must be integers or floats")
            self.scale = (1e-4 if self.dtype.kind in "iu" else 1.0) if scale == "auto" else float(scale)
            self.acquired: date | None = acquisition_date(dataset.tags(), self.name)
        except BaseException:
            self._stack.close()
            raise

    @cached_property
    def location(self) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84) of the centre; None without georeferencing."""
        if self.grid.crs is None:
            return None
        x, y = self.grid.transform @ (self.grid.width / 2, self.grid.height / 2)
        to_degrees = degrees_transformer(self.grid.crs.to_wkt())
        longitude, latitude = to_degrees.transform(x, y) if to_degrees else (np.nan, np.nan)
        return (float(latitude), float(longitude)) if np.isfinite([longitude, latitude]).all() else None

    def read_raw(self, window: Window | None = None, *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The six bands as the file holds them: (6, h, w) in `dtype`, in `out` if given. Raises ChipError where pixels are missing."""
        return read_pixels(self._dataset, self._where, list(self.band_indexes), window, out)

    def reflectance(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Values of `read_raw` → float32 reflectance (6, h, w), NaN in all six where any is nodata or not finite."""
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32's range becomes infinite, then NaN
            pixels = raw.astype(np.float32) if self.scale == 1.0 else np.multiply(raw, np.float32(self.scale), dtype=np.float32)
        empty = self.nodata_pixels(raw)
        if raw.dtype.kind == "f":
            empty |= ~np.isfinite(pixels).all(axis=0)
        if empty.any():
            pixels[:, empty] = np.nan
        return pixels

    def nodata_pixels(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """(h, w): True where any of the six bands of `raw` (6, h, w) holds the nodata value."""
        value = HLS_NODATA if self.nodata is None else self.nodata
        if np.isnan(value):
            return np.isnan(raw).any(axis=0) if raw.dtype.kind == "f" else np.zeros(raw.shape[1:], bool)
        if raw.dtype.kind in "iu" and (value != int(value) or not np.iinfo(raw.dtype).min <= value <= np.iinfo(raw.dtype).max):
            return np.zeros(raw.shape[1:], bool)
        with np.errstate(over="ignore"):
            wanted = raw.dtype.type(value)
        # Most chips have none: two quick passes (a NaN makes both False) say so without a boolean copy of every band.
        if raw.size and (wanted < raw.min() or wanted > raw.max()):
            return np.zeros(raw.shape[1:], bool)
        empty: npt.NDArray[np.bool_] = (raw == wanted).any(axis=0)
        return empty

    def read(self, window: Window | None = None) -> npt.NDArray[np.float32]:
        """Reflectance, float32 (6, h, w), of the window (in pixels; default the whole file); NaN where there is no data."""
        return self.reflectance(self.read_raw(window))

    def scene(self) -> Scene:
        """The whole file in memory."""
        return Scene(self.read(), self.grid, self.name, self.acquired, self.location)

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        self._stack.close()

    def __enter__(self) -> ChipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_mask(source: Path | str | bytes, *, max_pixels: int | None = None, name: str | None = None) -> npt.NDArray[np.int16]:
    """The mask as int16 (H, W): 0, 1, and −1 where ignored (−1, 255, NaN, or the file's nodata).

    A file nodata of 0 or 1 is not followed: those are classes, and many tools declare 0 as nodata without meaning it.
    Raises ChipError naming the values that are none of these.
    """
    where = name or ("the mask" if isinstance(source, bytes) else str(source))
    with ExitStack() as stack:
        dataset = open_geotiff(source, stack, where, max_pixels)
        if dataset.count != 1:
            raise ChipError(f"{where} has {dataset.count} bands: a mask has one")
        labels, nodata = read_pixels(dataset, where, 1, None), dataset.nodata
    return clean_labels(labels, nodata, where)


def clean_labels(labels: npt.NDArray[Any], nodata: float | None, where: str) -> npt.NDArray[np.int16]:
    """Labels as a file holds them (H, W) → int16 (H, W) in {0, 1, −1}. Raises ChipError naming unknown values."""
    if labels.dtype.kind in "iu" and labels.size and labels.min() >= 0 and labels.max() <= 1:  # most masks
        return labels.astype(np.int16)
    mask = np.full(labels.shape, -1, np.int16)
    mask[labels == 0] = 0
    mask[labels == 1] = 1
    ignored = (labels == -1) | (labels == 255)
    if labels.dtype.kind == "f":
        ignored |= np.isnan(labels)
    if nodata is not None and nodata not in (0, 1):
        ignored |= labels == nodata
    unknown = (mask == -1) & ~ignored
    if unknown.any():
        values = np.unique(labels[unknown])
        named = ", ".join(f"{value:g}" for value in values[:5].tolist()) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
        plural = "s" if len(values) > 1 else ""
        raise ChipError(f"{where} holds the unknown mask value{plural} {named}: known are 0, 1, and −1 or 255 for ignored")
    return mask


def open_geotiff(source: Path | str | bytes, stack: ExitStack, where: str, max_pixels: int | None) -> Any:
    """A rasterio dataset that `stack` closes. Raises ChipError for what is no sound GeoTIFF or has more than `max_pixels`."""
    start = source[:4] if isinstance(source, bytes) else _first_bytes(Path(source), where)
    if not start:
        raise ChipError(f"{where} is empty (0 bytes): fetch or write it again")
    if start not in TIFF_STARTS:
        raise ChipError(f"{where} is not a TIFF file: give a GeoTIFF")
    # Not catch_warnings: it is not safe with threads, and the file without georeferencing is an ordinary case here.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    try:
        with rasterio.Env(session=DummySession(), **GDAL_OPTIONS):
            if isinstance(source, bytes):
                dataset = stack.enter_context(stack.enter_context(MemoryFile(source)).open(driver="GTiff"))
            else:
                # A Path, not text: rasterio reads text like "zip://…" or "/vsicurl/…" as an address.
                dataset = stack.enter_context(rasterio.open(Path(source), driver="GTiff", sharing=False))
    except (RasterioError, OSError, ValueError) as error:
        raise ChipError(f"{where} is a truncated or damaged TIFF ({_reason(error)}): fetch or write it again") from None
    _check_header(dataset, where, max_pixels)
    return dataset


def read_pixels(
    dataset: Any, where: str, indexes: int | list[int], window: Window | None, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Pixels of an open dataset. Raises ChipError where the file ends too early or a block is damaged."""
    try:
        pixels: npt.NDArray[Any] = dataset.read(indexes, window=window, out=out)
    except (RasterioError, OSError, ValueError) as error:
        raise ChipError(f"{where} is truncated or damaged: its pixels cannot be read ({_reason(error)}); fetch or write it again") from None
    except MemoryError:
        size = f"{dataset.width}×{dataset.height} pixels"
        raise ChipError(f"{where} is too large to read at once ({size}): cut it into smaller files") from None
    return pixels


def select_bands(
    count: int, descriptions: tuple[str | None, ...], bands: Literal["auto"] | tuple[int | str, ...], where: str
) -> tuple[int, ...]:
    """Band numbers (from 1) of blue, green, red, nir, swir1, swir2 in a file of `count` bands.

    Raises ChipError naming the count and the configuration key `data.bands`.
    """
    named = _bands_by_name(descriptions)
    if bands == "auto":
        if all(band in named for band in BANDS):
            return tuple(named[band] for band in BANDS)
        if count == len(BANDS):
            return tuple(range(1, len(BANDS) + 1))
        if count == 13:
            return SENTINEL2_13
        raise ChipError(f"{where} has {count} band{'s' if count != 1 else ''} without the names of the six: say which six with data.bands")
    if len(bands) != len(BANDS):
        raise ChipError(f"data.bands names {len(bands)} bands: give six, for {', '.join(BANDS)}")
    own = _numbers(descriptions, _normal)
    codes = _numbers(descriptions, _band_code)
    indexes = []
    for band in bands:
        if isinstance(band, int):
            index: int | None = band
        else:
            index = own.get(_normal(band)) or codes.get(_band_code(band)) or named.get(COMMON_NAMES.get(_normal(band), ""))
        if index is None or not 1 <= index <= count:
            raise ChipError(f"{where} has no band {band!r} (it has {count} bands): mend data.bands")
        indexes.append(index)
    return tuple(indexes)


def acquisition_date(tags: dict[str, str], name: str) -> date | None:
    """When the sensor looked: the tags ACQUISITION_DATE or SENSING_TIME, else the name of an HLS or Sentinel-2 file, else TIFFTAG_DATETIME.

    TIFFTAG_DATETIME comes last because TIFF 6.0 means by it when the file was written.
    """
    for text in (tags.get("ACQUISITION_DATE"), tags.get("SENSING_TIME")):
        if text and (found := _calendar_date(text)):
            return found
    if match := re.search(r"T\d{2}[A-Z]{3}[._]((?:19|20)\d{2})(\d{3})(?!\d{4})", name):  # HLS.S30.T10TGS.2018285…
        year, day = int(match[1]), int(match[2])
        if 1 <= day <= 366:
            return date.fromordinal(date(year, 1, 1).toordinal() + day - 1)
    if (match := re.search(r"(?<!\d)((?:19|20)\d{2})(\d{2})(\d{2})T\d{6}", name)) and (found := _calendar_date("-".join(match.groups()))):
        return found
    return _calendar_date(tags.get("TIFFTAG_DATETIME", ""))


def tile_of(name: str) -> str:
    """The MGRS tile in an HLS or Sentinel-2 file name, such as "10TGS"; "" where there is none."""
    match = re.search(r"(?<![A-Za-z0-9])T(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})(?![A-Za-z0-9])", name)
    return match[1] if match else ""


@lru_cache(maxsize=512)
def degrees_transformer(crs: str) -> pyproj.Transformer | None:
    """From a CRS (WKT or EPSG:…) to longitude, latitude (WGS 84); None for one with no place on Earth. Threads may share it."""
    try:
        return pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(crs), "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def same_crs(one: CRS | None, other: CRS | None) -> bool:
    """Whether both files have the same CRS by GDAL's judgement (WKT that differs in more than names is not the same), or both none."""
    return one is other or (one is not None and other is not None and bool(one == other))


def _first_bytes(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except FileNotFoundError:
        raise ChipError(f"{where} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise ChipError(f"{where} cannot be read ({getattr(error, 'strerror', None) or error}): give a GeoTIFF file") from None


def _check_header(dataset: Any, where: str, max_pixels: int | None) -> None:
    """Refuse by the header alone what would unpack to far more than it seems."""
    if dataset.count > MAX_BANDS:
        raise ChipError(f"{where} claims {dataset.count} bands: at most {MAX_BANDS} are read")
    if max_pixels is None:
        return
    if dataset.width * dataset.height > max_pixels:
        size = f"{dataset.width}×{dataset.height} pixels"
        raise ChipError(f"{where} claims {size}, more than the {max_pixels:,} allowed: cut it into smaller files")
    rows, columns = dataset.block_shapes[0]
    together = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    if rows * columns * together * np.dtype(dataset.dtypes[0]).itemsize > max(SMALLEST_BLOCK_LIMIT, BLOCK_BYTES_PER_PIXEL * max_pixels):
        block = f"{columns}×{rows} pixels × {together} bands"
        raise ChipError(f"{where} claims blocks of {block}, too large to unpack: write it again with smaller tiles")


def _bands_by_name(descriptions: tuple[str | None, ...]) -> dict[str, int]:
    """Our band name → band number, where the descriptions say it: common names, or band codes of one sensor."""
    numbers = _numbers(descriptions, _normal)
    found: dict[str, int] = {}
    for common, band in COMMON_NAMES.items():
        if common in numbers:
            found.setdefault(band, numbers[common])
    if len(found) == len(BANDS):
        return found
    codes = _numbers(descriptions, _band_code)
    # B05 to B07 are red-edge bands where a B8A or a B12 stands beside them.
    sensor = "sentinel2" if "B8A" in codes or "B12" in codes else "landsat"
    by_code = {band: codes[code] for code, band in ALIASES[sensor].items() if code in codes}
    return by_code if len(by_code) == len(BANDS) else found


def _numbers(descriptions: tuple[str | None, ...], key: Callable[[str], str]) -> dict[str, int]:
    """Key of a description → band number; of equal keys the first, and none for what has no key."""
    found: dict[str, int] = {}
    for number, text in enumerate(descriptions, 1):
        if text and key(text):
            found.setdefault(key(text), number)
    return found


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _band_code(text: str) -> str:
    """B2, b02, SR_B2 and "Band 2" → B02; B8A stays."""
    match = re.fullmatch(r"(?:SR)?B(?:AND)?0*(\d{1,2})(A?)", re.sub(r"[^A-Z0-9]", "", text.upper()))
    return f"B{match[1]}A" if match and match[2] else f"B{int(match[1]):02d}" if match else ""


def _calendar_date(text: str) -> date | None:
    match = re.match(r"\s*(\d{4})[-:/]?(\d{2})[-:/]?(\d{2})", text)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """GDAL's last words, without the name of the file: for bytes it is one that only we know, and the line names the file already."""
    text = str(error.__cause__ or error)
    text = re.sub(r"^.*\.tiff?'?(?:, band \d+)?[:,]?\s*", "", text, flags=re.IGNORECASE)
    return " ".join(text.split())[:160] or type(error).__name__
