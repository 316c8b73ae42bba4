"""Splits chips into train, validation and test: by the data set's own lists, else by place and date, neighbours always on one side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.reader import degrees_transformer
from hls_foundry.config import DataConfig
from hls_foundry.errors import SplitError

SPLITS = ("train", "validation", "test")
TRIALS = 256  # random orders of the groups, of which the one nearest to the wanted shares is taken
OVERLAP = 0.01  # footprints that share less of the smaller one only touch: neighbours' edges differ by reprojection
MAX_LINES = 50  # of one kind in a report of leaks


@dataclass(frozen=True, eq=False)
class Splits:
    """`table`: the inventory's rows without an error, and the column `split`: "train", "validation" or "test"."""

    table: pd.DataFrame
    root: Path

    def of(self, split: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.table[self.table["split"] == split]


class Link(NamedTuple):
    """Two rows (by position) that must not lie on both sides of a split, and why."""

    one: int
    other: int
    why: str


def split_chips(inventory: Inventory, data: DataConfig) -> Splits:
    """Give every chip without an error its split; the same for the same chips, shares and `split_seed`, whatever their order.

    What the data set lists stays as listed, also where the lists leak (`check_leakage` says so). What it does not list is carved
    out of the training pool, that is the chips listed as training or not at all: first the test split (`test_share` of all chips) if
    no list names test chips, then the validation split (`validation_share` of the remaining pool) if none names validation chips.
    So hls_burn_scars keeps its validation/ folder, and its test split comes out of training/. An unlisted chip whose neighbours are
    listed joins them.

    Carving moves whole groups: chips connected by equal pixels, by one tile on dates within `neighbouring_days` (or unknown), or by
    overlapping footprints on such dates. Of many random orders the one nearest to the wanted share, of chips and of chips with
    class 1, wins; as long as there are three groups, none of the splits is empty.

    Raises SplitError where a split is empty or no training chip has a pixel of class 1.
    """
    table = inventory.table[inventory.table["error"] == ""].reset_index(drop=True)
    if table.empty:
        raise SplitError(f"no chip of {inventory.root} is without an error: see the inventory's error column")
    groups = group_chips(table, data.neighbouring_days)
    split = _follow_lists(table["listed_split"].to_numpy(dtype=object), groups)
    random = np.random.default_rng(data.split_seed)
    positive = table["positive_share"].to_numpy(dtype=float) > 0
    if "test" not in split:
        target = data.test_share * len(table)
        _carve(split, "test", target, groups, positive, reserve=1 if "validation" in split else 2, random=random)
    if "validation" not in split:
        target = data.validation_share * float(np.isin(split, ("", "train")).sum())
        _carve(split, "validation", target, groups, positive, reserve=1, random=random)
    split[split == ""] = "train"
    _check_usable(split, positive, int(groups.max()) + 1, inventory.root)
    return Splits(table.assign(split=split), inventory.root)


def check_leakage(table: pd.DataFrame, neighbouring_days: int) -> list[str]:
    """Pairs of chips on both sides of a split (column `split`) that should not be; empty = proven clean.

    A leak is: equal pixels (digest); one tile on dates within `neighbouring_days` of each other, or of unknown date; overlapping
    footprints on such dates. One line a pair, at most 50 of a kind and then their number.
    """
    table = table.reset_index(drop=True)
    split = table["split"].to_numpy(dtype=object)
    names = table["chip"].to_numpy(dtype=object)
    lines = []
    for kind, leaks in (
        ("equal pixels", _equal_pixels(table, split)),
        ("one tile on near dates", _leaks_in_tile(table, split, neighbouring_days)),
        ("overlapping footprints on near dates", _overlaps(table, split, neighbouring_days)),
    ):
        found = list(leaks)
        lines += [f"{names[one]} ({split[one]}) and {names[other]} ({split[other]}): {why}" for one, other, why in found[:MAX_LINES]]
        if len(found) > MAX_LINES:
            lines.append(f"and {len(found) - MAX_LINES} more pairs: {kind}")
    return lines


def group_chips(table: pd.DataFrame, neighbouring_days: int) -> npt.NDArray[np.int64]:
    """Group number of every row: rows connected, directly or over others, by what `check_leakage` calls a leak.

    Groups are numbered by their first chip's name, so the numbers do not depend on the order of the rows.
    """
    parent = list(range(len(table)))

    def top(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for kind in (_equal_pixels(table, None), _chains_in_tile(table, neighbouring_days), _overlaps(table, None, neighbouring_days)):
        for one, other, _ in kind:
            parent[top(one)] = top(other)
    numbers: dict[int, int] = {}
    groups = np.zeros(len(table), np.int64)
    for row in np.argsort(table["chip"].to_numpy(dtype=str), kind="stable"):
        groups[row] = numbers.setdefault(top(int(row)), len(numbers))
    return groups


def _follow_lists(listed: npt.NDArray[Any], groups: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Listed splits as they are; an unlisted chip takes the held-out split of its group, if there is one."""
    split = listed.copy()
    held = {name: set(groups[listed == name]) for name in SPLITS}
    for row in np.flatnonzero(listed == ""):
        split[row] = next((name for name in ("test", "validation", "train") if groups[row] in held[name]), "")
    return split


def _carve(
    split: npt.NDArray[Any],
    name: str,
    target: float,
    groups: npt.NDArray[np.int64],
    positive: npt.NDArray[np.bool_],
    *,
    reserve: int,
    random: np.random.Generator,
) -> None:
    """Move whole groups from the training pool of `split` to `name`, about `target` chips, leaving at least `reserve` groups.

    Groups that also have chips in another split by a list are left alone while there are others: moving them would leak.
    """
    pool = np.isin(split, ("", "train"))
    candidates = np.unique(groups[pool])
    clean = candidates[~np.isin(candidates, groups[~pool])]
    movable = clean if clean.size else candidates
    most = movable.size - max(0, reserve - (candidates.size - movable.size))
    if target <= 0 or most < 1:
        return
    sizes = np.bincount(groups[pool], minlength=groups.max() + 1)[movable]
    positives = np.bincount(groups[pool & positive], minlength=groups.max() + 1)[movable]
    wanted = np.count_nonzero(pool & positive) / np.count_nonzero(pool)
    best: tuple[float, npt.NDArray[np.int64]] = (np.inf, movable[:0])
    for _ in range(TRIALS):
        order = random.permutation(movable.size)
        chips, with_positive = np.cumsum(sizes[order])[:most], np.cumsum(positives[order])[:most]
        kept_positive = np.count_nonzero(pool & positive) - with_positive
        # In units of the target: how far off the size is, then the share of chips with class 1; no class 1 at all is worse than both.
        score = np.abs(chips - target) / target + np.abs(with_positive / chips - wanted)
        score += 10.0 * (kept_positive == 0) + 1.0 * (with_positive == 0)
        count = int(np.argmin(score))
        if score[count] < best[0]:
            best = (float(score[count]), movable[order[: count + 1]])
    split[pool & np.isin(groups, best[1])] = name


def _check_usable(split: npt.NDArray[Any], positive: npt.NDArray[np.bool_], groups: int, root: Path) -> None:
    for name in SPLITS:
        if not (split == name).any():
            share = "data.test_share" if name == "test" else "data.validation_share"
            mend = "list other chips for it" if name == "train" else f"set {share} above 0 or list chips for it"
            if groups < len(SPLITS):
                mend = f"its {split.size} chips are only {groups} groups by place and date, and three splits need three; add chips"
            raise SplitError(f"the {name} split of {root} is empty: {mend}")
    if not positive[split == "train"].any():
        raise SplitError(f"no training chip of {root} has a pixel of class 1: add labelled chips, or choose another data.split_seed")


def _days(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Day number of every row's date, NaN where unknown."""
    dates = pd.to_datetime(table["date"].replace("", None), format="ISO8601", errors="coerce")
    return np.asarray((dates - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1), dtype=np.float64)


def _apart(days: float) -> str:
    return "date unknown" if np.isnan(days) else f"{abs(days):.0f} days apart"


def _equal_pixels(table: pd.DataFrame, split: npt.NDArray[Any] | None) -> Iterator[Link]:
    """Every row with the first one of its digest; with `split`, with the first one in each other split."""
    seen: dict[str, dict[Any, int]] = {}
    for row, digest in enumerate(table["digest"]):
        if digest:
            side = None if split is None else split[row]
            firsts = seen.setdefault(digest, {})
            yield from (Link(first, row, "equal pixels") for other, first in firsts.items() if split is None or other != side)
            firsts.setdefault(side, row)


def _tiles(table: pd.DataFrame, days: npt.NDArray[np.float64]) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Every named tile with its rows, sorted by date, those of unknown date last."""
    tiles = table["tile"].to_numpy(dtype=str)
    for tile in np.unique(tiles[tiles != ""]):
        rows = np.flatnonzero(tiles == tile)
        yield str(tile), rows[np.argsort(days[rows], kind="stable")]


def _chains_in_tile(table: pd.DataFrame, neighbouring_days: int) -> Iterator[Link]:
    """Rows of one tile, each with the next in time if it is near; where a date is unknown, all rows of the tile."""
    days = _days(table)
    for tile, rows in _tiles(table, days):
        unknown = bool(np.isnan(days[rows]).any())
        for row, after in pairwise(rows):
            if unknown or days[after] - days[row] <= neighbouring_days:
                yield Link(int(row), int(after), tile)


def _leaks_in_tile(table: pd.DataFrame, split: npt.NDArray[Any], neighbouring_days: int) -> Iterator[Link]:
    """Every pair of one tile in two splits whose dates are near or not both known. Compares each row with all later ones."""
    days = _days(table)
    for tile, rows in _tiles(table, days):
        for index, row in enumerate(rows[:-1]):
            later = rows[index + 1 :]
            apart = days[later] - days[row]
            for other in later[(split[later] != split[row]) & ~(apart > neighbouring_days)]:
                yield Link(int(row), int(other), f"tile {tile}, {_apart(days[other] - days[row])}")


def _overlaps(table: pd.DataFrame, split: npt.NDArray[Any] | None, neighbouring_days: int) -> Iterator[Link]:
    """Pairs (with `split`: in two splits) whose footprints share more than 1 % of the smaller one, on dates near or not both known."""
    days = _days(table)
    shapes = footprints(table)
    rows = np.flatnonzero([shape is not None for shape in shapes])
    tree = shapely.STRtree(shapes[rows])
    one, other = rows[tree.query(shapes[rows], predicate="intersects")]
    keep = (one < other) & ~(np.abs(days[one] - days[other]) > neighbouring_days)
    if split is not None:
        keep &= split[one] != split[other]
    one, other = one[keep], other[keep]
    area = shapely.area(shapes)
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other])) / np.minimum(area[one], area[other])
    for a, b, part in zip(one, other, shared, strict=True):
        if part > OVERLAP:
            yield Link(int(a), int(b), f"footprints overlap by {part:.0%}, {_apart(days[a] - days[b])}")


def footprints(table: pd.DataFrame) -> npt.NDArray[Any]:
    """Every row's footprint in degrees as a polygon, None without georeferencing.

    From grid and CRS: the bounds in degrees of neighbouring UTM chips overlap, the chips do not.
    """
    shapes = np.full(len(table), None, dtype=object)
    for wkt, part in table.groupby("crs"):
        to_degrees = degrees_transformer(str(wkt)) if wkt else None
        if to_degrees is None:
            continue
        a, b, c, d, e, f = np.array(part["transform"].to_list(), dtype=np.float64).T[:, :, None]
        width, height = (part[side].to_numpy(dtype=np.float64)[:, None] for side in ("width", "height"))
        column, row = width * np.array([0, 1, 1, 0]), height * np.array([0, 0, 1, 1])
        x, y = to_degrees.transform(a * column + b * row + c, d * column + e * row + f)
        x = np.where((np.ptp(x, axis=1) > 180)[:, None] & (x < 0), x + 360, x)  # across the date line
        sound = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        shapes[np.asarray(part.index)[sound]] = shapely.polygons(np.stack([x, y], axis=-1)[sound])
    return shapes
