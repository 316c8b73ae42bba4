"""The relief of a synthetic landscape: elevation, a river and its valley, and how the sun lights it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hls_foundry.chips.synthetic.catalogue import RESOLUTION_M
from hls_foundry.chips.synthetic.fractal import BoolArray, FloatArray, FractalFields, blur, smoothstep


@dataclass(frozen=True)
class Terrain:
    """Layers (n, n) of one canvas."""

    elevation: FloatArray  # m
    drainage_height: FloatArray  # m above the river: what floods first is lowest
    river_distance: FloatArray  # pixels from the river's middle line
    river: BoolArray
    northness: FloatArray  # −1 to 1: which way the slope faces, times its steepness
    steepness: FloatArray  # rise over run
    sunlight: FloatArray  # direct light relative to flat ground, 0 in cast shadow


def build_terrain(fields: FractalFields, *, relief_m: float, river_width: float, valley_width: float, sun: tuple[float, float]) -> Terrain:
    """Hills of about `relief_m` metres, a river of `river_width` pixels (0: none is drawn, its valley stays) in a flat valley
    of about `valley_width` pixels, lit by the sun at (elevation, azimuth) degrees."""
    distance = _distance_to_river(fields)
    hills = fields.field(2.1, longest=260.0, shortest=3.0)
    # Ridged noise: crests where a field crosses zero, as eroded mountains have them.
    ridges = 1.0 - np.abs(fields.field(2.0, longest=110.0, shortest=3.0))
    away = smoothstep(distance, 0.25 * valley_width, 1.9 * valley_width)
    relief = (0.55 * (hills + 2.2) + 0.45 * (ridges + 1.0)) * (0.16 + 0.84 * away)
    # Old channels and levees give the valley floor its own low relief.
    floor = fields.field(2.1, longest=110.0, shortest=6.0)
    drainage = relief * 0.12 * relief_m + floor * (1.1 + 0.02 * relief_m * away) + 0.035 * distance
    elevation = (relief * 0.7 * relief_m + 0.6 * floor).astype(np.float32)
    meander = fields.field(1.8, longest=40.0, shortest=3.0)
    river = distance < 0.5 * river_width * (1.0 + 0.18 * meander) if river_width > 0 else np.zeros_like(distance, np.bool_)
    down, right = (np.asarray(slope, np.float32) for slope in np.gradient(blur(elevation, 1.0), RESOLUTION_M))
    sunlight = _sunlight(elevation, down, right, sun)
    steepness = np.hypot(down, right).astype(np.float32)
    # Rows run south, so ground that rises southwards faces north.
    northness = np.asarray(np.clip(2.5 * down, -1.0, 1.0), np.float32)
    return Terrain(elevation, drainage.astype(np.float32), distance, np.asarray(river), northness, steepness, sunlight)


def _distance_to_river(fields: FractalFields) -> FloatArray:
    """Pixels to a sine-generated curve (Langbein and Leopold 1966), the shape that meanders have."""
    random, n = fields.random, fields.n
    steps = int(2.2 * n)
    along = np.arange(-steps, steps)
    wavelength = random.uniform(45.0, 95.0)
    swing = random.uniform(0.5, 1.15) * (1.0 + 0.35 * np.sin(along / random.uniform(60.0, 120.0) + random.uniform(0, 6)))
    bend = 0.35 * np.sin(along / random.uniform(90.0, 160.0) + random.uniform(0, 6))
    direction = random.uniform(0, np.pi) + swing * np.sin(2 * np.pi * along / wavelength + bend * 4) + bend
    x, y = np.cumsum(np.cos(direction)), np.cumsum(np.sin(direction))
    x += n * random.uniform(0.3, 0.7) - x[steps]
    y += n * random.uniform(0.3, 0.7) - y[steps]
    inside = (x >= 0) & (x < n) & (y >= 0) & (y < n)
    line = np.ones((n, n), np.bool_)
    line[y[inside].astype(np.intp), x[inside].astype(np.intp)] = False
    return np.asarray(ndimage.distance_transform_edt(line), np.float32)


def _sunlight(elevation: FloatArray, down: FloatArray, right: FloatArray, sun: tuple[float, float]) -> FloatArray:
    height, azimuth = np.radians(sun[0]), np.radians(sun[1])
    east, north = np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height)
    facing = (-right * east + down * north + np.sin(height)) / np.sqrt(1.0 + down**2 + right**2)
    # A constant keeps faint slopes from black, as scattering does (the C correction of Teillet et al. 1982, the other way round).
    light = np.clip(facing + 0.12, 0.02, None) / (np.sin(height) + 0.12)
    lit = np.ones_like(elevation)
    for pixels in (1, 2, 3, 5, 7, 10, 14, 19):
        shift = (round(np.cos(azimuth) * pixels), round(-np.sin(azimuth) * pixels))
        towards_sun = np.roll(elevation, shift, (0, 1))
        above = towards_sun - elevation - pixels * RESOLUTION_M * np.tan(height)
        lit = np.minimum(lit, 1.0 - smoothstep(above, 0.0, 12.0))
    return np.asarray(light * lit, np.float32)
