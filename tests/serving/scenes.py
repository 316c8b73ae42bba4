"""Small scenes for the tests of serving and endpoints."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile

ORIGIN = (600000.0, 4420000.0)


def reflectance(size: int = 96, seed: int = 0, width: int | None = None) -> np.ndarray:
    """float32 (6, size, width): smooth blobs over vegetation, with a corner of no data."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0 : width or size] / 16.0
    pattern = np.sin(rows + seed) * np.cos(columns * 0.7 + seed)
    base = np.array([0.04, 0.07, 0.06, 0.3, 0.2, 0.12])[:, None, None]
    pixels = base * (1 + 0.6 * pattern) + generator.normal(0, 0.004, (6, *pattern.shape))
    pixels = pixels.clip(0.001, 1).astype(np.float32)
    pixels[:, :8, :8] = np.nan
    return pixels


def scene_tiff(
    size: int = 96,
    seed: int = 0,
    *,
    width: int | None = None,
    crs: str | None = "EPSG:32610",
    origin: tuple[float, float] = ORIGIN,
    step: float = 30.0,
    **profile: Any,
) -> bytes:
    """The scene as an HLS file holds it: int16 × 10000, nodata −9999."""
    pixels = np.nan_to_num(reflectance(size, seed, width) * 10000, nan=-9999).round().astype(np.int16)
    options: dict[str, Any] = {
        "driver": "GTiff",
        "count": 6,
        "height": size,
        "width": width or size,
        "dtype": "int16",
        "nodata": -9999,
        **profile,
    }
    if crs:
        options |= {"crs": crs, "transform": rasterio.transform.from_origin(*origin, step, step)}
    with MemoryFile() as memory:
        with memory.open(**options) as dataset:
            dataset.write(pixels)
        return bytes(memory.read())


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
