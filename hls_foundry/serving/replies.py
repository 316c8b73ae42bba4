"""Predictions to reply bodies: GeoJSON polygons, a cloud-optimised mask, probabilities, or an overlay to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hls_foundry.errors import ChipError, RequestError
from hls_foundry.inference.polygons import feature_collection, polygons
from hls_foundry.inference.predictor import mask_from_probabilities
from hls_foundry.inference.rasters import MASK_NODATA, mask_as_uint8, overlay_png, write_cog
from hls_foundry.serving.decode import Decoded
from hls_foundry.serving.negotiation import ReplyFormat
from hls_foundry.serving.registry import LoadedModel

MAX_REGIONS = 100_000  # some 20 s and 40 MB of polygons


def predict(model: LoadedModel, decoded: Decoded, kind: ReplyFormat, checkpoint: Callable[[], None]) -> bytes:
    """The reply's body. `checkpoint` is called between the steps; it raises when nobody waits any more.

    Raises RequestError 422 for a scene that cannot be predicted.
    """
    scene = decoded.scene
    try:
        probabilities = model.predictor.probabilities(scene.pixels, scene.acquired, scene.location)
    except ChipError as error:
        raise RequestError(422, "bad_image", str(error)) from None
    checkpoint()
    if kind is ReplyFormat.NPY:
        buffer = io.BytesIO()
        np.save(buffer, probabilities, allow_pickle=False)
        return buffer.getvalue()
    mask = mask_from_probabilities(probabilities, decoded.threshold)
    if kind is ReplyFormat.TIFF:
        return write_cog(None, mask_as_uint8(mask), scene.grid, MASK_NODATA)
    if kind is ReplyFormat.PNG:
        return overlay_png(scene.pixels, mask)
    _refuse_noise(mask == 1)
    try:
        features = polygons(mask, probabilities, scene.grid, model.bundle.manifest.classes)
    except ChipError as error:
        raise RequestError(422, "bad_image", str(error)) from None
    checkpoint()
    return json.dumps(feature_collection(features), separators=(",", ":")).encode()


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
