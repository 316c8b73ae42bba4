"""A wildfire on the landscape: its perimeter, its severity, and what char, ash and regrowth do to the reflectance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hls_foundry.chips.synthetic.fractal import BoolArray, FloatArray, FractalFields, coherent, smoothstep
from hls_foundry.chips.synthetic.landcover import LandCover, woodiness
from hls_foundry.chips.synthetic.spectra import spectrum
from hls_foundry.chips.synthetic.terrain import Terrain


@dataclass(frozen=True)
class Burn:
    """Layers (n, n)."""

    scar: BoolArray
    severity: FloatArray  # 0 outside, 0.2–1 inside


def burn(fields: FractalFields, terrain: Terrain, landcover: LandCover, *, share: float, crop: slice) -> Burn:
    """Burn about `share` of the window that `crop` cuts from both axes, and darken `landcover.reflectance` in place.

    Perimeters are irregular (fractal), reach up slopes, stop at water and partly at fields, and leave unburnt islands.
    """
    n = fields.n
    if share <= 0:
        return Burn(np.zeros((n, n), np.bool_), np.zeros((n, n), np.float32))
    spread = _spread(fields, terrain, landcover, share, crop)
    edge = float(np.quantile(spread[crop, crop], 1.0 - share))
    scar = coherent(spread > edge, sigma=1.6, smallest=120) & ~landcover.water
    inside = smoothstep(spread, edge, edge + 0.5)
    severity = 0.42 + 0.34 * inside + 0.22 * fields.field(1.9, longest=75.0, shortest=2.0) + 0.12 * woodiness(landcover)
    severity = np.where(scar, np.clip(severity - 0.12 * terrain.northness, 0.2, 1.0), 0.0).astype(np.float32)
    _colour(fields, landcover, scar, severity)
    return Burn(scar, severity)


def _spread(fields: FractalFields, terrain: Terrain, landcover: LandCover, share: float, crop: slice) -> FloatArray:
    """How readily the fire came to each pixel: highest near the ignition and along the wind."""
    random, n = fields.random, fields.n
    size = crop.stop - crop.start
    down, right = np.mgrid[0:n, 0:n].astype(np.float32)
    spread = np.full((n, n), -np.inf, np.float32)
    for _ in range(2 if share > 0.12 and random.random() < 0.45 else 1):
        wind, stretch = random.uniform(0, np.pi), random.uniform(1.0, 1.9)
        y, x = crop.start + size * random.uniform(0.2, 0.8, 2)
        along = (right - x) * np.cos(wind) + (down - y) * np.sin(wind)
        across = (down - y) * np.cos(wind) - (right - x) * np.sin(wind)
        reach = np.sqrt(share * size * size / np.pi)
        distance = np.hypot(along / stretch, across * stretch) / reach
        spread = np.maximum(spread, -distance)
    shape = fields.field(2.2, longest=0.5 * size) * 0.33 + fields.field(1.8, longest=30.0, shortest=3.0) * 0.07
    spread = spread + shape - 0.1 * terrain.northness
    spread -= 0.45 * landcover.farmland
    island = fields.share(fields.field(2.2, longest=60.0, shortest=8.0), 0.05)
    return np.asarray(np.where(island | landcover.water, -9.0, spread), np.float32)


def _colour(fields: FractalFields, landcover: LandCover, scar: BoolArray, severity: FloatArray) -> None:
    """Mix what the fire left with what stood there; `age` runs from fresh char (0) to a season of regrowth (1)."""
    random = fields.random
    age = random.uniform(0.0, 1.0)
    ground = random.uniform(0.0, 1.0) * spectrum("soil_brown") + random.uniform(0.0, 0.6) * spectrum("soil_red")
    ground /= max(float(ground[3] / 0.2), 1.0)
    old_char = (1 - 0.45 * age) * spectrum("char") + 0.45 * age * ground
    severity_in = severity[scar]
    charred = smoothstep(severity_in, 0.30, 0.75)
    burnt = old_char[:, None] * charred + spectrum("scorched")[:, None] * (1 - charred)
    ash = (1 - age) * 0.45 * smoothstep(fields.field(1.7, longest=40.0, shortest=2.0)[scar], 0.7, 2.6) * smoothstep(severity_in, 0.5, 0.8)
    burnt += ash * (spectrum("ash")[:, None] - burnt)
    regrowth = age * (0.08 + 0.18 * smoothstep(fields.field(1.7, longest=50.0, shortest=1.5)[scar], -0.6, 1.8)) * (1.15 - 0.5 * severity_in)
    burnt += regrowth * (spectrum("grass_green")[:, None] - burnt)
    burnt *= np.exp((0.09 * fields.field(1.2, longest=24.0) + 0.08 * fields.field(1.9, longest=90.0))[scar])
    # At low severity some canopy lives on.
    kept = 0.42 * (1.0 - smoothstep(severity_in, 0.2, 0.65))
    before = landcover.reflectance[:, scar]
    landcover.reflectance[:, scar] = burnt + kept * (before - burnt)
