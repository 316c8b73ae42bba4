"""Predictions to reply bodies: GeoJSON polygons, a cloud-optimised mask, probabilities, or an overlay to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hls_foundry.chips.scene import Scene
from hls_foundry.errors import ChipError, RequestError
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.polygons import feature_collection, polygons
from hls_foundry.inference.predictor import RollingRows
from hls_foundry.inference.rasters import MASK_NODATA, mask_as_uint8, overlay_png, write_cog
from hls_foundry.serving.decode import Decoded, LargeScene, unreadable
from hls_foundry.serving.negotiation import ReplyFormat
from hls_foundry.serving.registry import LoadedModel

MAX_REGIONS = 100_000  # some 20 s and 40 MB of polygons


def predict(model: LoadedModel, decoded: Decoded, kind: ReplyFormat, checkpoint: Callable[[], None]) -> bytes | memoryview:
    """The reply's body. `checkpoint` is called between the steps; it raises when nobody waits any more.

    Raises RequestError 422 for a scene that cannot be predicted.
    """
    scene = decoded.scene
    try:
        done = _streamed(model, scene, decoded.threshold, kind, checkpoint) if isinstance(scene, LargeScene) else _whole(model, scene)
    except ChipError as error:
        raise unreadable(error) from None
    checkpoint()
    if kind is ReplyFormat.NPY:
        return done.array if done.array is not None else _npy(done.probabilities)
    mask = done.mask if done.mask is not None else mask_from_probabilities(done.probabilities, decoded.threshold)
    if kind is ReplyFormat.TIFF:
        return write_cog(None, mask_as_uint8(mask), scene.grid, MASK_NODATA)
    if kind is ReplyFormat.PNG:
        return overlay_png(done.pixels, mask)
    _refuse_noise(mask == 1)
    try:
        features = polygons(mask, done.probabilities, scene.grid, model.bundle.manifest.classes)
    except ChipError as error:
        raise RequestError(422, "bad_image", str(error)) from None
    checkpoint()
    return json.dumps(feature_collection(features), separators=(",", ":")).encode()


@dataclass
class _Done:
    """What a reply is made of. Of a large scene only what its kind of reply needs; the rest is empty."""

    pixels: npt.NDArray[np.float32]  # (6 or the first 3, H, W)
    probabilities: npt.NDArray[np.float32]  # (K, H, W)
    mask: npt.NDArray[np.int16] | None = None
    array: memoryview | None = None  # the probabilities as an .npy file, of which they are a part


def _whole(model: LoadedModel, scene: Scene) -> _Done:
    return _Done(scene.pixels, model.predictor.probabilities(scene.pixels, scene.acquired, scene.location))


def _streamed(model: LoadedModel, scene: LargeScene, threshold: float | None, kind: ReplyFormat, checkpoint: Callable[[], None]) -> _Done:
    """The same bits, with a row of tiles of the scene in memory at a time."""
    height, width, classes = scene.grid.height, scene.grid.width, model.predictor.classes
    array = None
    if kind is ReplyFormat.NPY:
        array, probabilities = _npy_of(classes, height, width)
    else:
        probabilities = np.empty((classes, height, width) if kind is ReplyFormat.GEOJSON else (0, 0, 0), np.float32)
    pixels = np.empty((3, height, width) if kind is ReplyFormat.PNG else (0, 0, 0), np.float32)
    mask = np.empty((height, width), np.int16)

    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        rows = scene.rows(start, stop)
        if pixels.size:
            pixels[:, start:stop] = rows[:3]
        return rows

    strips = model.predictor.strips(
        RollingRows(read), height, width, acquired=scene.acquired, location=scene.location, progress=lambda *_: checkpoint()
    )
    for row, strip in strips:
        rows = slice(row, row + strip.shape[1])
        mask[rows] = mask_from_probabilities(strip.numpy(), threshold)
        if probabilities.size:
            probabilities[:, rows] = strip.numpy()
    return _Done(pixels, probabilities, mask, array)


def _npy(probabilities: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, probabilities, allow_pickle=False)
    return buffer.getvalue()


def _npy_of(classes: int, height: int, width: int) -> tuple[memoryview, npt.NDArray[np.float32]]:
    """An .npy file and the array in it, which is still to be filled: a whole scene's 100 MB need not be copied to be sent."""
    header = io.BytesIO()
    shape = (classes, height, width)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    start = header.tell()
    content = bytearray(start + 4 * classes * height * width)
    content[:start] = header.getvalue()
    return memoryview(content), np.frombuffer(content, np.float32, offset=start).reshape(shape)


def _refuse_noise(found: npt.NDArray[np.bool_]) -> None:
    """Raises RequestError 422 for a mask of more regions than can be polygons in a request's time: noise, not burn scars.

    By the Euler number of the 4-connected image (regions less holes: pixels − adjacent pairs + full 2 × 2 blocks), a lower bound of the
    regions that costs milliseconds (Gray 1971, Local properties of binary images in two dimensions).
    """
    across, down = found[:, 1:] & found[:, :-1], found[1:] & found[:-1]
    blocks = across[1:] & across[:-1]
    euler = int(found.sum()) - int(across.sum()) - int(down.sum()) + int(blocks.sum())
    if euler > MAX_REGIONS:
        detail = f"the mask has more than {MAX_REGIONS:,} separate regions: ask for image/tiff, or send a smaller scene"
        raise RequestError(422, "too_many_regions", detail)
