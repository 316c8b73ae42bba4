"""Request bodies to scenes. What a header claims is checked before anything of that size is allocated."""

from __future__ import annotations

import ast
import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.reader import ChipReader
from hls_foundry.chips.scene import Grid, Scene
from hls_foundry.errors import ChipError, RequestError
from hls_foundry.serving.negotiation import NPY_MAGIC, TIFF_MAGIC, RequestFormat
from hls_foundry.serving.options import ArrayOptions, Invocation, InvocationOptions, parse_attributes, parse_json
from hls_foundry.serving.s3 import S3Images, is_uri

MAX_NPY_HEADER = 4096


@dataclass(frozen=True)
class Decoded:
    """A scene and how its prediction is to be cut."""

    scene: Scene
    threshold: float | None


def decode(kind: RequestFormat, body: bytes, attributes: str | None, *, images: S3Images, max_pixels: int) -> Decoded:
    """The scene in `body`; `attributes` is the header X-Amzn-SageMaker-Custom-Attributes.

    Raises RequestError: 400 what cannot be parsed, 413 more pixels than `max_pixels`, 422 what cannot be predicted, 503 S3 is away.
    """
    if kind is RequestFormat.NPY:
        options = parse_attributes(attributes, array=True)
        assert isinstance(options, ArrayOptions)
        return Decoded(decode_npy(body, options, max_pixels), options.threshold)
    if kind is RequestFormat.JSON:
        invocation: Invocation = parse_json(Invocation, body)
        tiff = images.fetch(invocation.image) if is_uri(invocation.image) else _from_base64(invocation.image)
        return Decoded(decode_tiff(tiff, invocation, max_pixels), invocation.threshold)
    options = parse_attributes(attributes, array=False)
    return Decoded(decode_tiff(body, options, max_pixels), options.threshold)


def decode_tiff(tiff: bytes, options: InvocationOptions, max_pixels: int) -> Scene:
    """The six bands of a GeoTIFF. Raises RequestError 413 or 422."""
    if tiff[:4] not in TIFF_MAGIC:
        raise RequestError(422, "bad_image", "the image is not a TIFF file: send a GeoTIFF")
    try:
        with ChipReader(
            tiff, bands=options.bands, scale=options.scale, nodata=options.nodata, max_pixels=max_pixels, name="the image"
        ) as reader:
            return Scene(reader.read(), reader.grid, "scene", options.acquired or reader.acquired, options.location or reader.location)
    except ChipError as error:
        _refuse_large(tiff, options, max_pixels)
        raise RequestError(422, "bad_image", str(error).replace("data.bands", "the option bands")) from None


def _refuse_large(tiff: bytes, options: InvocationOptions, max_pixels: int) -> None:
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
