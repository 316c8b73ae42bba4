"""Hand-made GeoTIFFs for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from hls_foundry.config import DataConfig, TaskConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TifWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def write_tif() -> TifWriter:
    """write_tif(path, array (bands, H, W) or (H, W), descriptions=…, tags=…, **profile) → path; UTM 10N, 30 m unless told."""

    def write(path: Path, array: np.ndarray, *, descriptions: Any = (), tags: dict[str, str] | None = None, **profile: Any) -> Path:
        array = array[None] if array.ndim == 2 else array
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"crs": "EPSG:32610", "transform": from_origin(700_000, 5_200_000, 30, 30)} | profile
        with rasterio.open(
            path, "w", driver="GTiff", count=array.shape[0], height=array.shape[1], width=array.shape[2], dtype=array.dtype, **options
        ) as dataset:
            dataset.write(array)
            if descriptions:
                dataset.descriptions = descriptions
            dataset.update_tags(**(tags or {}))
        return path

    return write


@pytest.fixture(scope="session")
def write_chip(write_tif: TifWriter) -> TifWriter:
    """write_chip(folder, name, seed, size=64, positive=0.2, place=(column, row), flood=False) → image path, its mask in its place."""

    def write(
        folder: Path, name: str, seed: int, *, size: int = 64, positive: float = 0.2, place: tuple[int, int] = (0, 0), flood: bool = False
    ) -> Path:
        random = np.random.default_rng(seed)
        pixels = random.integers(200, 4000, (6, size, size)).astype(np.int16)
        mask = (random.random((size, size)) < positive).astype(np.int16)
        transform = from_origin(600_000 + place[0] * 30 * size, 5_200_000 - place[1] * 30 * size, 30, 30)
        image = folder / "S2Hand" / f"{name}_S2Hand.tif" if flood else folder / f"{name}_merged.tif"
        label = folder / "LabelHand" / f"{name}_LabelHand.tif" if flood else folder / f"{name}.mask.tif"
        write_tif(image, pixels, transform=transform)
        write_tif(label, mask, transform=transform)
        return image

    return write


@pytest.fixture(scope="session")
def burn_task() -> TaskConfig:
    return load_config(CONFIGS, task="burn_scars", source="unused").task


@pytest.fixture(scope="session")
def flood_task() -> TaskConfig:
    return load_config(CONFIGS, task="flood", source="unused").task


@pytest.fixture(scope="session")
def data() -> DataConfig:
    return DataConfig(source="unused", bands="auto", scale="auto", nodata=None)
