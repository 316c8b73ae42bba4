"""A flood on the landscape: water rises over the low ground, turbid near the river, clearer behind, with drowned vegetation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hls_foundry.chips.synthetic.fractal import BoolArray, FloatArray, FractalFields, coherent, hashed, smoothstep
from hls_foundry.chips.synthetic.landcover import LandCover
from hls_foundry.chips.synthetic.spectra import spectrum
from hls_foundry.chips.synthetic.terrain import Terrain


@dataclass(frozen=True)
class Flood:
    """Layers (n, n)."""

    water: BoolArray  # flood, lakes and the river: all that the label calls water
    depth: FloatArray  # m, 0 on land


def flood(fields: FractalFields, terrain: Terrain, landcover: LandCover, *, share: float, wet: float, crop: slice) -> Flood:
    """Drown about `share` of the window that `crop` cuts from both axes, and colour `landcover.reflectance` in place.

    `wet` is the share of soil that stays wet beside the water. Without a flood (share 0) lakes and the river stay.
    """
    ground = terrain.drainage_height + 0.2 * fields.field(1.5, longest=30.0, shortest=5.0)
    # Dykes and drains: fields drown one by one.
    ground += landcover.farmland * (hashed(landcover.parcels.number, 3).astype(np.float32) / 1024 - 0.5) * 2.0
    permanent = landcover.water
    level = float(np.quantile(ground[crop, crop], share)) if share > 0 else float(ground.min()) - 50.0
    drowned = coherent((ground < level) | permanent, sigma=2.2, smallest=200) if share > 0 else permanent
    depth = np.where(drowned, np.maximum(level - ground, 0.15), 0.0).astype(np.float32)
    if wet > 0:
        moist_to = float(np.quantile(ground[crop, crop], min(share + wet, 0.98)))
        wettest = min(level + 0.05, moist_to - 0.01) if share > 0 else moist_to - 1.0
        moist = smoothstep(-ground, -moist_to, -wettest)
        moist = moist * smoothstep(fields.field(1.7, longest=50.0, shortest=2.0), -0.8, 0.8) * ~drowned
        landcover.reflectance[:] += 0.92 * moist * (spectrum("soil_wet")[:, None, None] - landcover.reflectance)
    if share > 0:
        _colour(fields, terrain, landcover, drowned & ~permanent, drowned, depth)
    return Flood(drowned | permanent, depth)


def _colour(fields: FractalFields, terrain: Terrain, landcover: LandCover, fresh: BoolArray, water: BoolArray, depth: FloatArray) -> None:
    """Flood water carries silt where it flows; grass, crops and crowns stand out of the shallow parts."""
    random = fields.random
    current = 0.7 * fields.field(1.9, longest=90.0, shortest=3.0) - terrain.river_distance / 40.0
    silt = smoothstep(current, -2.2, 0.6) * random.uniform(0.4, 1.0)
    silty = spectrum("water_silty" if random.random() < 0.5 else "water_turbid")[:, None]
    still = (spectrum("water_clear") if random.random() < 0.6 else 0.5 * (spectrum("water_eutrophic") + spectrum("water_clear")))[:, None]
    silt_in = silt[fresh]
    colour = silt_in * silty + (1 - silt_in) * still
    colour *= 1.0 + 0.07 * fields.field(1.6, longest=50.0)[fresh]
    # Vegetation that stands out of the water, more of it where the water is shallow.
    shallow = np.exp(-depth[fresh] / 0.9)
    stand = smoothstep(fields.field(1.7, longest=55.0, shortest=2.0)[fresh] + 0.9 * shallow, 0.0, 1.5)
    emergent = 0.64 * stand
    before = 0.55 * landcover.reflectance[:, fresh] + 0.45 * spectrum("reeds")[:, None]
    landcover.reflectance[:, fresh] = colour + emergent * (before - colour)
    old = water & ~fresh
    # The river that flooded is as muddy as its flood.
    landcover.reflectance[:, old] += (0.7 * silt[old]) * (silty - landcover.reflectance[:, old])
