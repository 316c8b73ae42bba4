"""Where and when a synthetic chip lies: tile, place in the tile, date, listed split, and the strata of its content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from hls_foundry.chips.scene import Grid
from hls_foundry.errors import SourceError

TILE_PIXELS = 3660
"""An HLS tile is 3660 × 3660 pixels of 30 m (HLS user guide v2, section 4)."""

RESOLUTION_M = 30.0
SMALLEST, LARGEST = 64, 1024
COVER_LABELS = {"forest": ("conifer", "broadleaf")}
"""Labels of what grows on land without an event, as names of land cover: for tasks that somebody adds."""

TASKS = ("burn_scars", "flood", *COVER_LABELS)
"""What the generator can label. Their order is part of the chips' random seeds: new ones go to the end."""


SPLIT_CYCLE = ("train", "test", "train", "validation", "train", "train", "test", "train", "validation", "train")
"""Listed split of tile i % 10: six, two and two in ten, and all three within the first four chips."""

DAYS_OF_YEAR = range(152, 312, 5)
YEARS = range(2016, 2024)


@dataclass(frozen=True)
class Region:
    """What the land of a tile is like; shares and degrees from 0 to 1."""

    place: str
    mgrs: str  # zone, latitude band, 100 km square: 10TGS
    aridity: float
    relief: float
    farmland: float
    forest: float
    urban: float

    @property
    def zone(self) -> int:
        return int(self.mgrs[:2])

    @property
    def southern(self) -> bool:
        return self.mgrs[2] < "N"


# Aridity, relief, farmland, forest and urban are one person's reading of atlases, enough for twenty places to look different.
_BURN_REGIONS = (
    Region("Washington", "10TGS", 0.55, 0.6, 0.30, 0.5, 0.2),
    Region("Mendocino", "10SEH", 0.45, 0.8, 0.15, 0.6, 0.2),
    Region("Plumas", "10TFK", 0.40, 0.9, 0.10, 0.8, 0.1),
    Region("LosAngeles", "11SLT", 0.65, 0.8, 0.15, 0.3, 0.6),
    Region("Idaho", "11TNJ", 0.60, 0.6, 0.35, 0.4, 0.2),
    Region("Montana", "12TVR", 0.45, 0.8, 0.25, 0.6, 0.1),
    Region("Arizona", "12SVC", 0.75, 0.7, 0.10, 0.4, 0.2),
    Region("Colorado", "13TDE", 0.50, 0.9, 0.15, 0.6, 0.2),
    Region("SanJuan", "13SBA", 0.70, 0.7, 0.20, 0.4, 0.1),
    Region("Nevada", "11TPG", 0.75, 0.6, 0.15, 0.2, 0.1),
    Region("Butte", "10SFJ", 0.45, 0.8, 0.30, 0.6, 0.3),
    Region("Utah", "12STJ", 0.70, 0.6, 0.20, 0.3, 0.1),
    Region("BlackHills", "13TEK", 0.50, 0.5, 0.25, 0.5, 0.1),
    Region("Oklahoma", "14SMF", 0.50, 0.3, 0.45, 0.3, 0.2),
    Region("Fresno", "11SKA", 0.55, 0.5, 0.45, 0.4, 0.3),
    Region("Oregon", "10TEN", 0.30, 0.8, 0.15, 0.9, 0.2),
    Region("Florida", "17RML", 0.25, 0.1, 0.30, 0.6, 0.3),
    Region("Okanogan", "11TLN", 0.55, 0.6, 0.35, 0.4, 0.1),
    Region("WhiteMountains", "12SWD", 0.65, 0.7, 0.10, 0.5, 0.1),
    Region("NewMexico", "13SCU", 0.70, 0.7, 0.15, 0.4, 0.2),
)
_FLOOD_REGIONS = (
    Region("Ghana", "30PXR", 0.45, 0.3, 0.40, 0.4, 0.2),
    Region("India", "45RUJ", 0.30, 0.1, 0.70, 0.3, 0.4),
    Region("Mekong", "48PWT", 0.25, 0.2, 0.60, 0.4, 0.3),
    Region("Nigeria", "32NKP", 0.30, 0.3, 0.45, 0.5, 0.3),
    Region("Pakistan", "42RVR", 0.60, 0.2, 0.65, 0.2, 0.3),
    Region("Paraguay", "21JVL", 0.30, 0.1, 0.35, 0.6, 0.1),
    Region("Somalia", "38NNJ", 0.65, 0.3, 0.35, 0.2, 0.2),
    Region("Spain", "30SXH", 0.50, 0.5, 0.60, 0.3, 0.5),
    Region("Sri-Lanka", "44NNN", 0.20, 0.5, 0.45, 0.7, 0.3),
    Region("USA", "15SXV", 0.30, 0.2, 0.60, 0.5, 0.3),
    Region("Mozambique", "36KXD", 0.40, 0.2, 0.40, 0.4, 0.2),
    Region("Bangladesh", "46RBN", 0.25, 0.1, 0.65, 0.4, 0.4),
    Region("Australia", "56JNN", 0.40, 0.5, 0.40, 0.5, 0.2),
    Region("Colombia", "18PWR", 0.20, 0.3, 0.40, 0.6, 0.2),
    Region("Germany", "32UQC", 0.25, 0.3, 0.60, 0.5, 0.4),
    Region("Romania", "35TNK", 0.40, 0.3, 0.60, 0.3, 0.3),
    Region("Thailand", "48PVB", 0.30, 0.2, 0.65, 0.4, 0.3),
    Region("Italy", "32TPQ", 0.30, 0.3, 0.65, 0.3, 0.5),
    Region("Argentina", "20HQH", 0.40, 0.1, 0.55, 0.3, 0.2),
    Region("Serbia", "34TDQ", 0.35, 0.3, 0.60, 0.4, 0.4),
)
REGIONS = {"burn_scars": _BURN_REGIONS, "flood": _FLOOD_REGIONS, **dict.fromkeys(COVER_LABELS, _BURN_REGIONS)}


@dataclass(frozen=True)
class Placement:
    """One chip before its pixels: `strata` are four numbers in [0, 1) that spread evenly over the chips of a split."""

    name: str
    region: Region
    grid: Grid
    acquired: date
    listed_split: str
    strata: tuple[float, float, float, float]


def check_request(task: str, size: int, seed: int) -> None:
    """Raise SourceError, one line, when no chip can be made from these."""
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise SourceError(f"no synthetic labels for task '{task}': give --data chips of yours, or synthetic://LABELS?… with one of {known}")
    if not SMALLEST <= size <= LARGEST:
        raise SourceError(f"synthetic chips cannot have size={size}: choose {SMALLEST} to {LARGEST} pixels")
    if seed < 0:
        raise SourceError(f"synthetic chips cannot have seed={seed}: choose 0 or more")


def capacity(size: int) -> int:
    """How many chips of `size` pixels the twenty tiles hold without overlap and without two of one name."""
    return 2 * len(SPLIT_CYCLE) * min((TILE_PIXELS // size) ** 2, len(YEARS) * len(DAYS_OF_YEAR))


def place_chip(task: str, index: int, size: int, seed: int) -> Placement:
    """The place, date and name of chip `index`; chips of one tile never overlap and never share a date.

    Raises SourceError when the arguments allow no such chip.
    """
    check_request(task, size, seed)
    if not 0 <= index < capacity(size):
        raise SourceError(f"synthetic chip {index} of size={size} does not exist: the tiles hold {capacity(size)} chips of that size")
    cycle, position = divmod(index, len(SPLIT_CYCLE))
    tile, slot = position + len(SPLIT_CYCLE) * (cycle % 2), cycle // 2
    region = REGIONS[task][tile]
    slots, days = _shuffled_slots(TASKS.index(task), tile, size, seed)
    row, column = divmod(slots[slot], TILE_PIXELS // size)
    year, day = divmod(days[slot], len(DAYS_OF_YEAR))
    acquired = date(YEARS[year], 1, 1) + timedelta(days=DAYS_OF_YEAR[day] - 1)
    left, top, crs = tile_origin(region)
    transform = Affine(RESOLUTION_M, 0.0, left + column * size * RESOLUTION_M, 0.0, -RESOLUTION_M, top - row * size * RESOLUTION_M)
    if task == "flood":
        # 7919 and 8999999 have no common divisor, so no number comes twice.
        name = f"{region.place}_{1_000_000 + (index * 7919 + seed * 104_729) % 8_999_999}"
    else:
        name = f"subsetted_{size}x{size}_HLS.S30.T{region.mgrs}.{acquired:%Y%j}.v1.4"
    split = SPLIT_CYCLE[position]
    return Placement(name, region, Grid(size, size, transform, crs), acquired, split, _strata(task, split, cycle, position, seed))


def tile_origin(region: Region) -> tuple[float, float, CRS]:
    """Left and top (m) of the tile and its UTM zone: the 100 km square's corner moved outwards to a multiple of 60 m,
    as Sentinel-2 and HLS tiles have it (T10TGS: 699960, 5200020)."""
    zone = region.zone
    columns = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3]
    easting = 100_000 * (columns.index(region.mgrs[3]) + 1)
    row = "ABCDEFGHJKLMNPQRSTUV".index(region.mgrs[4]) - (0 if zone % 2 else 5)
    # Row letters come again every 2000 km; the latitude band says which of them (8° of 111 km each from 80° S).
    band_middle = ("CDEFGHJKLMNPQRSTUVWX".index(region.mgrs[2]) * 8 - 76) * 110_950 + (10_000_000 if region.southern else 0)
    northing = 100_000 * (row % 20)
    northing += 2_000_000 * round((band_middle - northing) / 2_000_000)
    left, top = easting // 60 * 60, -(-(northing + 100_000) // 60) * 60
    return float(left), float(top), CRS.from_epsg((32700 if region.southern else 32600) + zone)


def sun_position(region: Region, acquired: date) -> tuple[float, float]:
    """Elevation and azimuth (degrees, clockwise from north) of the sun at 10:30 local solar time (Cooper's declination)."""
    latitude = np.radians(latitude_of(region))
    declination = np.radians(23.45) * np.sin(2 * np.pi * (284 + acquired.timetuple().tm_yday) / 365)
    hour = np.radians(-22.5)
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    elevation = np.arcsin(sine)
    east = -np.cos(declination) * np.sin(hour)
    north = np.sin(declination) * np.cos(latitude) - np.cos(declination) * np.sin(latitude) * np.cos(hour)
    return float(np.degrees(elevation)), float(np.degrees(np.arctan2(east, north)) % 360)


def latitude_of(region: Region) -> float:
    """Latitude of the tile's middle, degrees, to about a tenth."""
    _, top, _ = tile_origin(region)
    return (top - 55_000 - (10_000_000 if region.southern else 0)) / 110_950


@lru_cache(maxsize=64)
def _shuffled_slots(task: int, tile: int, size: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places in the tile and days, both in random order; slot k takes the k-th of each."""
    random = np.random.default_rng([seed, task, tile, size, 7])
    places = random.permutation((TILE_PIXELS // size) ** 2)
    days = random.permutation(len(YEARS) * len(DAYS_OF_YEAR))
    return tuple(int(place) for place in places), tuple(int(day) for day in days)


def _strata(task: str, split: str, cycle: int, position: int, seed: int) -> tuple[float, float, float, float]:
    """The R4 low-discrepancy sequence (Roberts 2018) over the chips of a split: even a dozen test chips then hold the whole
    range of burnt or flooded shares, of clouds and of confusers, so that scores of different seeds compare."""
    turns = [i for i, listed in enumerate(SPLIT_CYCLE) if listed == split]
    rank = cycle * len(turns) + turns.index(position)
    start = np.random.default_rng([seed, TASKS.index(task), len(turns), ord(split[0])]).random(4)
    step = np.array([0.8566748838545029, 0.733891856627126, 0.6287067210378087, 0.5385972572236101])
    a, b, c, d = (start + rank * step) % 1.0
    return float(a), float(b), float(c), float(d)
