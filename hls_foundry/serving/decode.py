"""Request bodies to scenes. What a header claims is checked before anything of that size is allocated."""

from __future__ import annotations

import ast
import base64
import binascii
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.windows import Window

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.reader import ChipReader
from hls_foundry.chips.scene import Grid, Scene
from hls_foundry.errors import ChipError, RequestError
from hls_foundry.serving.negotiation import NPY_MAGIC, TIFF_MAGIC, RequestFormat
from hls_foundry.serving.options import ArrayOptions, Invocation, InvocationOptions, parse_attributes, parse_json
from hls_foundry.serving.s3 import S3Images, is_uri
from hls_foundry.serving.spool import Spool

MAX_NPY_HEADER = 4096
LARGE_PIXELS = 2_000_000
"""Scenes of more pixels are read by rows while they are predicted: whole, an HLS tile takes 0.3 GB as float32, and 0.5 GB on the way."""
TALLEST_BLOCK = 1024  # rows: a file of taller blocks would be unpacked anew for every row of tiles


class LargeScene:
    """A scene that stays in its file."""

    def __init__(self, reader: ChipReader, options: InvocationOptions) -> None:
        self._reader = reader
        self.grid = reader.grid
        self.acquired: date | None = options.acquired or reader.acquired
        self.location = options.location or reader.location

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Reflectance (6, stop − start, W), NaN where there is no data. Raises ChipError where the file is damaged there."""
        return self._reader.read(Window(0, start, self.grid.width, stop - start))


@dataclass(frozen=True)
class Decoded:
    """A scene and how its prediction is to be cut; a context manager that closes what the scene is read from."""

    scene: Scene | LargeScene
    threshold: float | None
    _open: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def __enter__(self) -> Decoded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()


def decode(kind: RequestFormat, body: bytes | Spool, attributes: str | None, *, images: S3Images, max_pixels: int) -> Decoded:
    """The scene in `body`; `attributes` is the header X-Amzn-SageMaker-Custom-Attributes. A LargeScene needs the body while it is used.

    Raises RequestError: 400 what cannot be parsed, 413 more pixels than `max_pixels`, 422 what cannot be predicted, 503 S3 is away.
    """
    if kind is RequestFormat.NPY:
        options = parse_attributes(attributes, array=True)
        assert isinstance(options, ArrayOptions)
        return Decoded(decode_npy(_content(body), options, max_pixels), options.threshold)
    with ExitStack() as opened:
        if kind is RequestFormat.JSON:
            options = parse_json(Invocation, _content(body))
            assert isinstance(options, Invocation)
            body = opened.enter_context(images.fetch(options.image)) if is_uri(options.image) else _from_base64(options.image)
        else:
            options = parse_attributes(attributes, array=False)
        source = body if isinstance(body, bytes) else body.source()
        scene = decode_tiff(source, options, max_pixels, opened)
        return Decoded(scene, options.threshold, opened.pop_all() if isinstance(scene, LargeScene) else ExitStack())


def _content(body: bytes | Spool) -> bytes:
    return body if isinstance(body, bytes) else body.content()


def decode_tiff(tiff: bytes | Path, options: InvocationOptions, max_pixels: int, opened: ExitStack) -> Scene | LargeScene:
    """The six bands of a GeoTIFF; `opened` holds what a LargeScene is read from. Raises RequestError 413 or 422."""
    if _starts(tiff) not in TIFF_MAGIC:
        raise RequestError(422, "bad_image", "the image is not a TIFF file: send a GeoTIFF")
    try:
        reader = opened.enter_context(
            ChipReader(tiff, bands=options.bands, scale=options.scale, nodata=options.nodata, max_pixels=max_pixels, name="the image")
        )
        if reader.grid.width * reader.grid.height > LARGE_PIXELS and reader.block_rows <= TALLEST_BLOCK:
            return LargeScene(reader, options)
        return Scene(reader.read(), reader.grid, "scene", options.acquired or reader.acquired, options.location or reader.location)
    except ChipError as error:
        _refuse_large(tiff, options, max_pixels)
        raise unreadable(error) from None


def unreadable(error: ChipError) -> RequestError:
    """What reading the image raised, in the client's words and without where it lies in this process."""
    detail = re.sub(r"/proc/self/fd/\d+", "the image", str(error)).replace("data.bands", "the option bands")
    return RequestError(422, "bad_image", detail)


def _starts(tiff: bytes | Path) -> bytes:
    if isinstance(tiff, bytes):
        return tiff[:4]
    with tiff.open("rb") as file:
        return file.read(4)


def _refuse_large(tiff: bytes | Path, options: InvocationOptions, max_pixels: int) -> None:
    """Raises RequestError 413 where the header claims more than `max_pixels`; the reader has already refused the file."""
    try:
        with ChipReader(tiff, bands=options.bands) as reader:
            _check_pixels(reader.grid.width, reader.grid.height, max_pixels)
    except ChipError:
        return


def decode_npy(body: bytes, options: ArrayOptions, max_pixels: int) -> Scene:
    """A NumPy array of reflectance, any float or integer type, (6, H, W). Raises RequestError 413 or 422.

    The header is read without pickle and without numpy's own reader, so that a body never allocates more than it holds.
    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    shape, dtype, fortran, start = _npy_header(body)
    if len(shape) != 3 or shape[0] != len(BANDS):
        raise RequestError(422, "bad_array", f"the array has shape {shape}: send ({len(BANDS)}, height, width) of {', '.join(BANDS)}")
    _, height, width = shape
    _check_pixels(width, height, max_pixels)
    if len(body) - start != len(BANDS) * height * width * dtype.itemsize:
        raise RequestError(422, "bad_array", f"the body holds {len(body) - start} bytes of data, not a {dtype} array of shape {shape}")
    flat = np.frombuffer(body, dtype, offset=start)
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, then NaN
        pixels = flat.reshape(shape, order="F" if fortran else "C").astype(np.float32, order="C")
    pixels[:, ~np.isfinite(pixels).all(axis=0)] = np.nan
    return Scene(pixels, _grid(width, height, options), "scene", options.acquired, options.location)


def _npy_header(body: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, dtype, Fortran order and the offset of the data."""
    bad = RequestError(422, "bad_array", "the body is not a NumPy array in .npy format")
    if not body.startswith(NPY_MAGIC) or len(body) < 12:
        raise bad
    first = 10 if body[6] == 1 else 12
    length = int.from_bytes(body[8:first], "little")
    if length > MAX_NPY_HEADER:
        raise bad
    try:
        header = ast.literal_eval(body[first : first + length].decode("utf-8"))
        shape, descr, fortran = tuple(header["shape"]), header["descr"], bool(header["fortran_order"])
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise bad from None
    if dtype is None or dtype.kind not in "fiu":
        raise RequestError(422, "bad_array", f"the array holds {str(descr)[:40]}: send floats or integers of reflectance, never objects")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise bad
    return shape, dtype, fortran, first + length


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        detail = f"the image claims {width} × {height} pixels, more than the {max_pixels:,} allowed: cut it into smaller scenes"
        raise RequestError(413, "image_too_large", detail)


def _grid(width: int, height: int, options: ArrayOptions) -> Grid:
    if options.crs is None or options.transform is None:
        return Grid(width, height)
    try:
        return Grid(width, height, Affine(*options.transform), CRS.from_user_input(options.crs))
    except CRSError:
        raise RequestError(422, "bad_option", "crs: not a coordinate system that is known; give EPSG:… or WKT") from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(422, "bad_image", "image is neither an s3:// URI nor base64") from None
