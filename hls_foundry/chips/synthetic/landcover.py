"""What grows and stands on the terrain: natural vegetation as mixtures, fields as parcels, towns and lakes, with their reflectance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from hls_foundry.chips.synthetic.catalogue import Region, latitude_of
from hls_foundry.chips.synthetic.fractal import BoolArray, FloatArray, FractalFields, blur, coherent, hashed, smoothstep
from hls_foundry.chips.synthetic.spectra import mixed, spectra, spectrum
from hls_foundry.chips.synthetic.terrain import Terrain

COVERS = ("conifer", "broadleaf", "shrub", "grass", "bare", "rock", "crop", "stubble", "ploughed", "town", "lake", "river")
"""Names of the codes in LandCover.cover."""

_TEXTURE = np.array([0.16, 0.13, 0.13, 0.09, 0.09, 0.13, 0.06, 0.05, 0.06, 0.16, 0.03, 0.04], np.float32)
_NATURAL = COVERS[:6]
_GREENER: FloatArray = np.array([-0.30, -0.08, -0.55, 0.40, -0.22, -0.42], np.float32)


@dataclass(frozen=True)
class Mix:
    """How much of what a chip shall hold, as shares of its area."""

    farmland: float
    ploughed: float  # of the farmland
    town: float
    lakes: float
    dark_ground: float  # basalt and dark natural soil
    wet_fields: float = 0.0  # of the farmland: bare, soaked by rain or irrigation, without standing water


@dataclass(frozen=True)
class Parcels:
    """A division of the canvas (n, n) into fields."""

    number: npt.NDArray[np.int64]  # 0 to 1023
    line: BoolArray  # tracks between fields
    centre: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]  # row and column of the middle of each pixel's field


@dataclass(frozen=True)
class LandCover:
    """One canvas (n, n) of land."""

    reflectance: FloatArray  # (6, n, n), flat light, no atmosphere
    cover: npt.NDArray[np.int8]  # index into COVERS
    farmland: BoolArray
    parcels: Parcels
    water: BoolArray  # lakes and the river
    greenness: float  # 0–1: season of the herbs


def build_landcover(fields: FractalFields, terrain: Terrain, region: Region, acquired: date, mix: Mix) -> LandCover:
    """Land cover and its reflectance before the event that the task maps."""
    random = fields.random
    green = greenness(region, acquired)
    soil = _soil(random, region)
    cover, reflectance = _natural(fields, terrain, region, green, soil, mix)
    lowland = -terrain.drainage_height / (terrain.drainage_height.std() + 0.1) + 0.8 * fields.field(2.0, longest=90.0, shortest=8.0)
    land = divide(random, fields.n, irrigated=region.aridity > 0.55 and random.random() < 0.5)
    # A field is ploughed as a whole or not at all: farmland ends along field borders.
    farmland = fields.share(lowland[land.centre], mix.farmland) if mix.farmland > 0.01 else np.zeros_like(terrain.river)
    table, kinds = _field_table(random, green, soil, mix)
    np.copyto(reflectance, table[:, land.number], where=farmland)
    cover[farmland] = kinds[land.number][farmland]
    track = 0.6 * spectrum("soil_bright")[:, None] + 0.4 * spectrum("grass_dry")[:, None]
    reflectance[:, farmland & land.line] = 0.5 * reflectance[:, farmland & land.line] + 0.5 * track
    _texture(fields, cover, reflectance)
    _roads(random, reflectance)
    if mix.town > 0.001:
        _town(fields, lowland, reflectance, cover, mix.town)
    water = _water(fields, terrain, reflectance, cover, mix.lakes)
    return LandCover(reflectance, cover, farmland, land, water, green)


def greenness(region: Region, acquired: date) -> float:
    """0 (cured, leafless) to 1 (lush): a yearly wave that peaks in June, six months later in the south, flatter near the equator."""
    latitude = latitude_of(region)
    peak = 165 if latitude >= 0 else 347
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (acquired.timetuple().tm_yday - peak) / 365.0)
    seasonal = min(abs(latitude) / 35.0, 1.0)
    return float(np.clip((1.0 - 0.75 * region.aridity) * (seasonal * wave + (1.0 - seasonal) * 0.7), 0.05, 1.0))


def divide(random: np.random.Generator, n: int, *, irrigated: bool) -> Parcels:
    """Divide land into blocks that each have their own direction and field size; `irrigated` adds centre pivots."""
    down, right = np.mgrid[0:n, 0:n].astype(np.float32)
    turn = random.uniform(0, np.pi)
    block, blocks = _blocks(random, down, right, turn)
    angles = turn + random.normal(0, 0.22, blocks) + np.pi / 2 * random.integers(0, 2, blocks)
    cosine, sine = np.cos(angles).astype(np.float32)[block], np.sin(angles).astype(np.float32)[block]
    wide, tall = random.uniform(14, 34, blocks).astype(np.float32)[block], random.uniform(9, 22, blocks).astype(np.float32)[block]
    u, v = (right * cosine + down * sine) / wide, (down * cosine - right * sine) / tall
    column = np.floor(u)
    offset = hashed(column, block).astype(np.float32) / 1024
    v += offset
    row = np.floor(v)
    division = hashed(column, row, block)
    half = np.where(division < 330, u - column > 0.3 + division / 900.0, (division < 520) & (v - row > 0.5))
    number = hashed(column, row, block, half)
    line = ((u - column) * wide < 1.0) & (division % 2 == 0)
    middle_u, middle_v = (column + 0.5) * wide, (row + 0.5 - offset) * tall
    centre_down, centre_right = middle_u * sine + middle_v * cosine, middle_u * cosine - middle_v * sine
    if irrigated:
        width = 2 * float(random.uniform(11, 15))
        tower_down, tower_right = (down // width + 0.5) * width, (right // width + 0.5) * width
        pivot = hashed(tower_down // width, tower_right // width, 5)
        circle = (np.hypot(down - tower_down, right - tower_right) < width / 2 - 0.7) & (pivot < 600)
        number = np.where(circle, pivot, number)
        line &= ~circle
        centre_down, centre_right = np.where(circle, tower_down, centre_down), np.where(circle, tower_right, centre_right)
    centre = (np.clip(centre_down, 0, n - 1).astype(np.intp), np.clip(centre_right, 0, n - 1).astype(np.intp))
    return Parcels(number, line, centre)


def _blocks(random: np.random.Generator, down: FloatArray, right: FloatArray, turn: float) -> tuple[npt.NDArray[np.int64], int]:
    """The nearest of a few random seeds by Manhattan distance, so that blocks meet along straight roads."""
    n = len(down)
    blocks = int(np.clip((n / 90.0) ** 2, 3, 24))
    nearest = np.full((n, n), np.inf, np.float32)
    block = np.zeros((n, n), np.int64)
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    for number, (y, x) in enumerate(random.uniform(0, n, (blocks, 2)).astype(np.float32)):
        distance = np.abs((right - x) * cosine + (down - y) * sine) + np.abs((down - y) * cosine - (right - x) * sine)
        closer = distance < nearest
        nearest[closer], block[closer] = distance[closer], number
    return block, blocks


def _soil(random: np.random.Generator, region: Region) -> FloatArray:
    """The parent soil of a chip: wetter places have darker ground."""
    weights = random.dirichlet(np.array([1.2 - 0.6 * region.aridity, 1.6, 0.5 + 0.9 * region.aridity, 0.6]))
    return np.asarray(spectra("soil_dark", "soil_brown", "soil_bright", "soil_red") @ weights, np.float32)


def _natural(
    fields: FractalFields, terrain: Terrain, region: Region, green: float, soil: FloatArray, mix: Mix
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Shares of six natural covers, from moisture, height and aspect, and what they reflect together."""
    height = (terrain.elevation - terrain.elevation.mean()) / (terrain.elevation.std() + 1.0)
    dry = region.aridity + 0.25 * fields.field(2.0, longest=220.0, shortest=2.0) - 0.35 * terrain.northness
    patch = [fields.field(1.5, longest=55.0, shortest=2.0) for _ in range(6)]
    scores = np.stack(
        [
            1.9 * region.forest + 0.35 * height * region.relief - 1.2 * dry + 0.55 * patch[0],
            1.9 * region.forest - 0.30 * height - 1.5 * dry + 0.55 * patch[1] - 0.3 * region.relief,
            0.35 + 0.2 * dry + 0.5 * patch[2],
            0.55 + 0.1 * dry - 0.15 * height + 0.5 * patch[3],
            -0.9 + 0.9 * dry + 0.5 * patch[4],
            -1.7 + 0.9 * dry + 1.3 * np.clip(terrain.steepness * 2.0, 0, 1) + 0.5 * patch[5],
        ]
    ).astype(np.float32)
    shares = np.exp(3.2 * (scores - scores.max(0)))
    shares /= shares.sum(0)
    leaf = float(np.clip(1.5 * green, 0.25, 1.0))
    arid = float(np.clip(region.aridity + fields.random.normal(0, 0.1), 0, 1))
    palette = np.stack(
        [
            spectrum("conifer"),
            leaf * spectrum("broadleaf") + (1 - leaf) * spectrum("broadleaf_autumn"),
            (1 - 0.7 * arid) * spectrum("shrub") + 0.7 * arid * spectrum("sagebrush"),
            green * spectrum("grass_green") + (1 - green) * spectrum("grass_dry"),
            0.85 * soil + 0.15 * spectrum("grass_dry"),
            spectrum("rock"),
        ],
        axis=1,
    )
    reflectance = mixed(palette, shares)
    cover = shares.argmax(0).astype(np.int8)
    if mix.dark_ground > 0.002:
        flow = fields.field(2.2, longest=90.0, shortest=5.0)
        dark = coherent(fields.share(flow, mix.dark_ground), sigma=1.2, smallest=40)
        ground = 0.6 * spectrum("basalt") + 0.4 * spectrum("soil_dark")
        reflectance[:, dark] = 0.78 * ground[:, None] + 0.22 * reflectance[:, dark]
        cover[dark] = COVERS.index("rock")
    return cover, reflectance


def _field_table(random: np.random.Generator, green: float, soil: FloatArray, mix: Mix) -> tuple[FloatArray, npt.NDArray[np.int8]]:
    """Reflectance (6, 1024) and cover code of every field number: crops at their stages, stubble and ploughed soil."""
    stages = ("crop_full", "crop_early", "crop_ripe", "stubble", "grass")
    weights = np.array([0.15 + 0.6 * green, 0.2, 0.25, 0.22 * (1.2 - green), 0.20])
    weights *= (1.0 - mix.ploughed - mix.wet_fields) / weights.sum()
    stage = random.choice(len(stages) + 2, 1024, p=[*weights, mix.ploughed, mix.wet_fields])
    moist = random.uniform(0.0, 0.75, 1024).astype(np.float32)
    tilled = soil[:, None] * (1 - moist) + spectrum("soil_dark")[:, None] * moist
    grass = green * spectrum("grass_green") + (1 - green) * spectrum("grass_dry")
    palette = np.concatenate([spectra(*stages[:4]), grass[:, None], np.zeros((6, 2), np.float32)], axis=1)
    table = palette[:, stage]
    table[:, stage == 5] = tilled[:, stage == 5]
    table[:, stage == 6] = 0.12 * tilled[:, stage == 6] + 0.88 * spectrum("soil_wet")[:, None]
    # Fields of one crop differ in vigour: some soil shows through.
    bare = np.where(stage < 5, random.beta(1.3, 5.0, 1024), 0.0).astype(np.float32)
    table = table * (1 - bare) + soil[:, None] * bare
    table *= np.exp(random.normal(0, 0.10, (1, 1024)) + random.normal(0, 0.03, (6, 1024)))
    codes = np.array([COVERS.index(name) for name in ("crop", "crop", "crop", "stubble", "grass", "ploughed", "ploughed")], np.int8)
    return table.astype(np.float32), codes[stage]


def _texture(fields: FractalFields, cover: npt.NDArray[np.int8], reflectance: FloatArray) -> None:
    """Brightness and greenness vary within each cover, as crowns, gaps, rows and moisture make them."""
    strength = _TEXTURE[cover]
    brightness = (0.7 * fields.field(0.7, longest=24.0) + 0.5 * fields.field(1.6, longest=120.0)) * strength
    vigour = (0.7 * fields.field(1.0, longest=40.0) + 0.5 * fields.field(1.6, longest=120.0)) * strength
    for band in range(6):
        reflectance[band] *= np.clip(1.0 + brightness + _GREENER[band] * vigour, 0.3, 2.0)


def _roads(random: np.random.Generator, reflectance: FloatArray) -> None:
    """A few main roads, straight with a gentle bend, about a pixel wide."""
    n = reflectance.shape[1]
    down, right = np.mgrid[0:n, 0:n].astype(np.float32)
    for _ in range(random.poisson(1.1 * n / 288)):
        angle, bend = random.uniform(0, np.pi), random.uniform(-0.0012, 0.0012)
        y, x = random.uniform(0, n, 2)
        along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
        across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle) + bend * along**2
        road = np.abs(across) < random.uniform(0.5, 0.8)
        surface = spectrum("asphalt" if random.random() < 0.6 else "soil_bright")[:, None]
        reflectance[:, road] += 0.6 * (surface - reflectance[:, road])


def _town(fields: FractalFields, lowland: FloatArray, reflectance: FloatArray, cover: npt.NDArray[np.int8], share: float) -> None:
    """Built-up land: a mosaic of roofs, roads and gardens, with large dark roofs and yards in its industrial parts."""
    site = fields.field(2.0, longest=60.0, shortest=6.0)
    town = coherent(fields.share(site + 0.4 * np.clip(lowland, -2, 2), share), sigma=1.5, smallest=30)
    streets = divide(fields.random, fields.n, irrigated=False)
    line, block = streets.line, streets.number
    mosaic = fields.field(0.4, longest=8.0)
    palette = spectra("asphalt", "roof_tile", "roof_bright", "grass_green", "roof_dark")
    bright, gardens = 0.9 * fields.field(0.4, longest=8.0) - 1.4, 0.7 * fields.field(0.8, longest=12.0)
    weights = np.exp(np.stack([0.9 * mosaic, -0.9 * mosaic, bright, gardens]))
    weights /= weights.sum(0)
    built = mixed(palette[:, :4], weights)
    industry = (site > np.quantile(site[town], 0.6)) if town.any() else town
    large = industry & (block % 5 < 3)
    roof = np.where(block % 5 == 0, np.float32(0), np.float32(1))
    built[:, large] = 0.85 * (palette[:, [4]] * roof[large] + palette[:, [0]] * (1 - roof[large])) + 0.15 * built[:, large]
    built[:, line] = 0.5 * built[:, line] + 0.5 * palette[:, [0]]
    np.copyto(reflectance, built, where=town)
    cover[town] = COVERS.index("town")


def _water(fields: FractalFields, terrain: Terrain, reflectance: FloatArray, cover: npt.NDArray[np.int8], lakes: float) -> BoolArray:
    """Lakes in hollows and the river in its bed, each with its own water, and sand or reeds on the shores."""
    n = fields.n
    lake = np.zeros((n, n), np.bool_)
    if lakes > 0.001:
        hollow = fields.field(2.4, longest=110.0, shortest=8.0) - 0.25 * np.clip(terrain.drainage_height / 20.0, 0, 3)
        lake = coherent(fields.share(hollow, lakes), sigma=1.6, smallest=90)
        near = smoothstep(hollow, float(np.quantile(hollow[::2, ::2], 1 - lakes)) - 0.25, float(np.quantile(hollow[::2, ::2], 1 - lakes)))
        fringe = near * (0.55 if fields.random.random() < 0.5 else 0.25)
        shore = spectrum("reeds" if fields.random.random() < 0.6 else "soil_wet")[:, None, None]
        reflectance += fringe * (shore - reflectance)
    kinds = spectra("water_clear", "water_turbid", "water_eutrophic") @ fields.random.dirichlet((1.2, 0.5, 0.4))
    stream = spectra("water_clear", "water_turbid") @ fields.random.dirichlet((0.8, 1.0))
    ripple = 1.0 + 0.08 * fields.field(1.8, longest=60.0)
    for body, colour, code in ((lake, kinds, "lake"), (terrain.river, stream, "river")):
        np.copyto(reflectance, colour.astype(np.float32)[:, None, None] * ripple, where=body)
        cover[body] = COVERS.index(code)
    return lake | terrain.river


def woodiness(landcover: LandCover) -> FloatArray:
    """0–1 (n, n), smooth: how much woody fuel stands there."""
    return blur(np.isin(landcover.cover, (0, 1, 2)).astype(np.float32), 2.0)
