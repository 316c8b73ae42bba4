"""Between the ground and the sensor: clouds and their shadows, haze, clean air, the point spread, noise, and the swath's edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hls_foundry.chips.synthetic.catalogue import RESOLUTION_M
from hls_foundry.chips.synthetic.fractal import BoolArray, FloatArray, FractalFields, smoothstep
from hls_foundry.chips.synthetic.spectra import DIFFUSE_SHARE, HAZE, RAYLEIGH, spectrum


@dataclass(frozen=True)
class Clouds:
    """Layers (n, n) from 0 to 1."""

    opacity: FloatArray
    shadow: FloatArray
    brightness: FloatArray


def build_clouds(fields: FractalFields, *, share: float, sun: tuple[float, float]) -> Clouds:
    """Cumulus over about `share` of the canvas; the sun at (elevation, azimuth) degrees displaces its shadow."""
    n = fields.n
    clear = np.zeros((n, n), np.float32)
    if share <= 0.001:
        return Clouds(clear, clear, clear)
    random = fields.random
    puffs = fields.field(2.0, longest=random.uniform(50.0, 130.0), shortest=4.0)
    edge = float(np.quantile(puffs[::2, ::2], 1.0 - share))
    opacity = smoothstep(puffs, edge - 0.16, edge + 0.34)
    tops = fields.field(1.4, longest=20.0, shortest=1.5)
    brightness = (0.72 + 0.30 * smoothstep(puffs, edge, edge + 1.2) + 0.07 * tops).astype(np.float32)
    # Height 0.6 to 1.6 km; the displacement is that height over the tangent of the sun's elevation.
    pixels = random.uniform(600.0, 1600.0) / np.tan(np.radians(sun[0])) / RESOLUTION_M
    azimuth = np.radians(sun[1])
    shift = (round(float(np.cos(azimuth) * pixels)), round(float(-np.sin(azimuth) * pixels)))
    shadow = np.roll(smoothstep(puffs, edge - 0.02, edge + 0.30), shift, (0, 1))
    return Clouds(opacity, shadow, brightness)


def illuminate(reflectance: FloatArray, sunlight: FloatArray, shadow: FloatArray, water: BoolArray) -> None:
    """Scale (6, n, n) in place to the light that arrives: direct sun on slopes and out of shadows, and the blue sky anywhere."""
    direct = np.where(water, 1.0, sunlight) * (1.0 - 0.93 * shadow)
    for band, diffuse in enumerate(DIFFUSE_SHARE):
        reflectance[band] *= diffuse + (1.0 - diffuse) * direct


def point_spread(image: FloatArray) -> FloatArray:
    """The sensor's point spread over (6, n, n), a [0.15, 0.7, 0.15] kernel along both axes: neighbouring covers mix."""
    for axis in (1, 2):
        image = 0.70 * image + 0.15 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return image


def observe(fields: FractalFields, surface: FloatArray, clouds: Clouds, *, haze: float, air: float) -> FloatArray:
    """What the sensor measures of (6, n, n): point spread, haze of `haze` in blue, `air` times the path reflectance of clean air
    (0 for surface reflectance products, 1 for top-of-atmosphere), clouds, noise."""
    image = point_spread(surface)
    veil = np.clip(haze * (1.0 + 0.22 * fields.field(2.4, longest=300.0)), 0.0, None).astype(np.float32)
    cloud = spectrum("cloud")
    noise = fields.random.standard_normal((6, fields.n, fields.n), np.float32)
    for band in range(6):
        image[band] *= 1.0 - 0.6 * veil * HAZE[band]
        image[band] += veil * HAZE[band] + air * RAYLEIGH[band]
        image[band] += clouds.opacity * (cloud[band] * clouds.brightness - image[band])
        image[band] += noise[band] * (0.0012 + 0.006 * image[band])
    return image


def swath_edge(random: np.random.Generator, size: int, share: float) -> BoolArray:
    """Pixels (size, size) beyond the edge of the satellite's swath: a slanted line, `share` of the chip behind it."""
    down, right = np.mgrid[0:size, 0:size].astype(np.float32)
    tilt = np.radians(random.choice((-1.0, 1.0)) * 12.0 + random.normal(0, 2.0)) + np.pi * random.integers(0, 2)
    across = right * np.cos(tilt) + down * np.sin(tilt)
    return np.asarray(across > np.quantile(across, 1.0 - share), np.bool_)
