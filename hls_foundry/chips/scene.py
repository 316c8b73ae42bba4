"""A scene in memory: six bands of surface reflectance on a grid. What readers return and what predictors take."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS


@dataclass(frozen=True)
class Grid:
    """Where pixels lie. `crs` is None for files without georeferencing; then `transform` is the identity."""

    width: int
    height: int
    transform: Affine = field(default_factory=Affine.identity)
    crs: CRS | None = None


@dataclass(frozen=True)
class Scene:
    """`pixels`: float32 (6, H, W), surface reflectance (mostly 0–1), NaN where there is no data in any of the six bands."""

    pixels: npt.NDArray[np.float32]
    grid: Grid
    name: str = "scene"
    acquired: date | None = None
    location: tuple[float, float] | None = None  # latitude, longitude of the centre, degrees
