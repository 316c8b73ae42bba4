"""One synthetic chip, from (task, index, size, seed) to pixels and label: a pure function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from hls_foundry.chips.scene import Grid
from hls_foundry.chips.synthetic.atmosphere import Clouds, build_clouds, illuminate, observe, swath_edge
from hls_foundry.chips.synthetic.burning import burn
from hls_foundry.chips.synthetic.catalogue import COVER_LABELS, TASKS, Placement, place_chip, sun_position
from hls_foundry.chips.synthetic.flooding import flood
from hls_foundry.chips.synthetic.fractal import FractalFields
from hls_foundry.chips.synthetic.landcover import COVERS, LandCover, Mix, build_landcover
from hls_foundry.chips.synthetic.terrain import Terrain, build_terrain

MARGIN = 16
"""Pixels of canvas around a chip, so that the canvas may wrap around while the chip does not."""

THICK_CLOUD = 0.5
"""Opacity from which nothing can be labelled under a cloud."""


@dataclass(frozen=True)
class SyntheticChip:
    """A chip and its label, on one grid, with the layers that it was made of."""

    name: str
    pixels: npt.NDArray[np.float32]  # (6, H, W) reflectance in steps of 0.0001, NaN where no data
    mask: npt.NDArray[np.int16]  # (H, W): 0, 1, −1 ignored
    grid: Grid
    tile: str  # T10TGS
    acquired: date
    listed_split: str  # train, validation or test
    layers: dict[str, npt.NDArray[Any]]  # cover (codes of COVERS), elevation (m), event (severity or depth in m), cloud, shadow (0–1)


def synthetic_chip(task: str, index: int, size: int, seed: int) -> SyntheticChip:
    """Make chip `index` of the data set that (`task`, `size`, `seed`) names; the same arguments give the same bits.

    `task` is burn_scars (surface reflectance, class 1 burn scar), flood (top-of-atmosphere reflectance, class 1 water) or a land
    cover of COVER_LABELS (surface reflectance, class 1 that cover).
    Raises SourceError, one line, for an unknown task, a size outside 64–1024, or an index beyond the tiles' room.
    """
    place = place_chip(task, index, size, seed)
    fields = FractalFields(np.random.Generator(np.random.SFC64([seed, TASKS.index(task), index, size])), _canvas(size))
    crop = slice(MARGIN, MARGIN + size)
    sun = sun_position(place.region, place.acquired)
    make = _flooded if task == "flood" else _burnt if task == "burn_scars" else _covered
    terrain, landcover, positive, event, clouds, haze, air = make(fields, place, sun, crop)
    if task in COVER_LABELS:
        positive = np.isin(landcover.cover, [COVERS.index(name) for name in COVER_LABELS[task]])
    surface = landcover.reflectance
    level = positive if task == "flood" else landcover.water  # water lies flat whatever the ground under it
    illuminate(surface, terrain.sunlight, clouds.shadow, level)
    image = observe(fields, surface, clouds, haze=haze, air=air)[:, crop, crop]
    counts = np.clip(np.rint(image * 10000.0), -300, 16000)
    missing = np.zeros((size, size), np.bool_)
    if fields.random.random() < 0.08:
        missing = swath_edge(fields.random, size, fields.random.uniform(0.03, 0.3))
    mask = positive[crop, crop].astype(np.int16)
    mask[(clouds.opacity[crop, crop] > THICK_CLOUD) | missing] = -1
    pixels = (counts / np.float32(10000.0)).astype(np.float32)
    pixels[:, missing] = np.nan
    layers: dict[str, npt.NDArray[Any]] = {
        "cover": landcover.cover,
        "elevation": terrain.elevation,
        "event": event,
        "cloud": clouds.opacity,
        "shadow": clouds.shadow,
    }
    layers = {name: np.ascontiguousarray(layer[crop, crop]) for name, layer in layers.items()}
    return SyntheticChip(place.name, pixels, mask, place.grid, f"T{place.region.mgrs}", place.acquired, place.listed_split, layers)


def _canvas(size: int) -> int:
    return int(fft.next_fast_len(size + 2 * MARGIN))


_Parts = tuple[Terrain, LandCover, npt.NDArray[np.bool_], npt.NDArray[np.float32], Clouds, float, float]


def _burnt(fields: FractalFields, place: Placement, sun: tuple[float, float], crop: slice, *, fires: bool = True) -> _Parts:
    random, region = fields.random, place.region
    amount, fields_stratum, cloud_stratum, dark_stratum = place.strata
    share = 0.0 if amount < 0.1 or not fires else 0.05 + 0.36 * ((amount - 0.1) / 0.9) ** 1.2
    relief = 60.0 + 420.0 * region.relief * random.uniform(0.5, 1.1)
    terrain = build_terrain(
        fields,
        relief_m=relief,
        river_width=random.uniform(1.5, 4.0) if random.random() < 0.4 else 0.0,
        valley_width=random.uniform(25.0, 60.0),
        sun=sun,
    )
    mix = Mix(
        farmland=float(np.clip(0.45 * region.farmland + 0.35 * (fields_stratum - 0.3), 0.0, 0.5)),
        ploughed=0.05 + 0.16 * dark_stratum,
        town=0.05 * region.urban * random.random(),
        lakes=0.05 * max(random.random() - 0.45, 0.0),
        dark_ground=0.07 * max(dark_stratum - 0.35, 0.0) + 0.01,
    )
    landcover = build_landcover(fields, terrain, region, place.acquired, mix)
    fire = burn(fields, terrain, landcover, share=share, crop=crop)
    clouds = build_clouds(fields, share=0.08 * max(cloud_stratum - 0.65, 0.0) / 0.35, sun=sun)
    return terrain, landcover, fire.scar, fire.severity, clouds, 0.002 + 0.014 * random.random() ** 2, 0.0


def _covered(fields: FractalFields, place: Placement, sun: tuple[float, float], crop: slice) -> _Parts:
    """The land of the burn scars before it burns; what of it is class 1 is the caller's to say."""
    return _burnt(fields, place, sun, crop, fires=False)


def _flooded(fields: FractalFields, place: Placement, sun: tuple[float, float], crop: slice) -> _Parts:
    random, region = fields.random, place.region
    amount, fields_stratum, cloud_stratum, dark_stratum = place.strata
    share = 0.0 if amount < 0.1 else 0.05 + 0.36 * ((amount - 0.1) / 0.9) ** 1.2
    terrain = build_terrain(
        fields,
        relief_m=25.0 + 260.0 * region.relief * random.uniform(0.4, 1.1),
        river_width=random.uniform(4.0, 9.0) * min(max(place.grid.width / 160, 0.45), 1.0) if share > 0 or random.random() < 0.5 else 0.0,
        valley_width=random.uniform(50.0, 110.0),
        sun=sun,
    )
    mix = Mix(
        farmland=float(np.clip(0.8 * region.farmland + 0.4 * (fields_stratum - 0.5), 0.0, 0.75)),
        ploughed=0.15 + 0.15 * random.random(),
        town=0.03 + 0.16 * region.urban * (0.4 + dark_stratum),
        lakes=0.06 * max(random.random() - 0.4, 0.0),
        dark_ground=0.0,
        wet_fields=0.10 + 0.26 * dark_stratum,
    )
    landcover = build_landcover(fields, terrain, region, place.acquired, mix)
    rise = flood(fields, terrain, landcover, share=share, wet=0.07 + 0.16 * dark_stratum, crop=crop)
    clouds = build_clouds(fields, share=0.24 * max(cloud_stratum - 0.45, 0.0) / 0.55, sun=sun)
    return terrain, landcover, rise.water, rise.depth, clouds, 0.006 + 0.03 * random.random(), random.uniform(0.85, 1.1)
