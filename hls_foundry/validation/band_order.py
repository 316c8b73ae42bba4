"""Whether a data set's bands come in the contract's order: which order fits the task's reference spectrum best.

No single chip can tell: water, snow, cloud and fresh scars have spectra of their own. Over a data set the medians of the bands'
brightness, contrast and darkest pixels follow a shape that is the same for land everywhere (contrast that grows with the wavelength,
a bright near infrared, haze that lifts blue in the shadows), and a swap breaks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import TaskConfig

Order = tuple[int, ...]
"""What each of the six places holds, as an index into NAMES; (0, 1, 2, 3, 4, 5) is the contract."""

NAMES = (*BANDS, "coastal aerosol", "red edge 1", "red edge 2")
AS_IT_SHOULD_BE: Order = (0, 1, 2, 3, 4, 5)
STACKS: tuple[Order, ...] = ((3, 0, 1, 2, 4, 5), (3, 2, 1, 0, 4, 5))  # near infrared first: before blue, or as colour infrared
FIRST_SIX: tuple[Order, ...] = ((6, 0, 1, 2, 3, 4), (6, 0, 1, 2, 7, 8))  # bands 1 to 6 of a Landsat and of a Sentinel-2 stack
PATH_REFLECTANCE = np.array([0.075, 0.045, 0.025, 0.008, 0.003, 0.001])
"""What a clear atmosphere adds to surface reflectance at the top of it (Rayleigh, about 40° sun). References of both kinds exist
(HLS is at the surface, Sen1Floods11 at the top), and so do data sets."""

DARKEST = 1.5
"""The darkest pixels of the reference lie this many standard deviations under its mean, in the visible bands: what remains over
shadow and water is the atmosphere, which tells blue from red where their means are alike (data from the top of the atmosphere)."""
FLOOR = 0.01  # reflectance: below, logarithms make much of noise

UNUSUAL = 0.1  # handicap of an order that is not one of the usual mistakes
MOVED = 0.02  # and more for every band it moves: of two that fit alike, the simpler mistake is the likelier
GOOD_FIT = 0.9  # squared log distance above which the data are strange in another way (all water, all snow) and no order is judged
MANY_CHIPS = 4
EVIDENCE = (0.5, 0.2)  # by how much another order must fit better, with fewer than MANY_CHIPS and with more
CLEARLY_BETTER = 0.7  # and: at most this share of the distance that the contract's order has


@dataclass(frozen=True)
class BandOrder:
    """The order that fits best; `problem` names the mistake ("" = the contract's order, or nothing to judge by)."""

    order: Order
    problem: str

    @property
    def mend(self) -> str:
        """What to set so that six-band files are read right."""
        if self.order in FIRST_SIX:
            return "set data.bands to the numbers of the six in the file (2 to 7 of Landsat 8, [2, 3, 4, 9, 12, 13] of 13 Sentinel-2 bands)"
        places = [self.order.index(band) + 1 for band in range(len(BANDS))]
        return f"set data.bands to {places} (of a six-band file)"


def judge_band_order(chips: pd.DataFrame, task: TaskConfig) -> BandOrder:
    """Compare the orders of the bands on the chips given: rows of the inventory that are typical land (not cloud, mostly data).

    Distance of one order: squared differences of logarithms, without their mean, between data and reference: of brightness (median
    over chips of the bands' medians) and contrast (of their standard deviations), over the six bands, and of the darkest 2 % over
    the three visible bands. The atmosphere that fits best is granted to each order.
    """
    if chips.empty:
        return BandOrder(AS_IT_SHOULD_BE, "")
    statistics = {what: chips[[f"{band}_{what}" for band in BANDS]].median().to_numpy(dtype=np.float64) for what in ("q02", "q50", "std")}
    orders, handicap = _orders()
    distances = _distances(statistics, orders, task) + handicap
    best, as_is = int(distances.argmin()), float(distances[0])
    distance, order = float(distances[best]), tuple(int(band) for band in orders[best])
    evidence = EVIDENCE[len(chips) >= MANY_CHIPS]
    found = order != AS_IT_SHOULD_BE and as_is - distance > evidence and distance < min(GOOD_FIT, CLEARLY_BETTER * as_is)
    return BandOrder(order, describe(order) if found else "")


def describe(order: Order) -> str:
    """An order in words: what is swapped with what."""
    moved = [place for place in range(len(BANDS)) if order[place] != place]
    if not moved:
        return ""
    if order in FIRST_SIX:
        return "the bands are the file's first six, which begin with coastal aerosol, not with blue"
    if order == AS_IT_SHOULD_BE[::-1]:
        return "the bands are in reverse order"
    if len(moved) == 2:
        return f"{BANDS[moved[0]]} and {BANDS[moved[1]]} are swapped"
    return "the bands come as " + ", ".join(NAMES[band] for band in order)


@lru_cache(maxsize=1)
def _orders() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """All orders (the contract's first) and their handicaps: none for the contract's and for the usual mistakes."""
    usual = {AS_IT_SHOULD_BE, AS_IT_SHOULD_BE[::-1], *STACKS, *FIRST_SIX}
    for one, other in combinations(range(len(BANDS)), 2):
        swapped = list(AS_IT_SHOULD_BE)
        swapped[one], swapped[other] = other, one
        usual.add(tuple(swapped))
    orders = [*permutations(range(len(BANDS))), *FIRST_SIX]
    moved = [sum(band != place for place, band in enumerate(order)) for order in orders]
    handicaps = [0.0 if order in usual else UNUSUAL + MOVED * many for order, many in zip(orders, moved, strict=True)]
    return np.array(orders), np.array(handicaps)


def _distances(statistics: dict[str, npt.NDArray[np.float64]], orders: npt.NDArray[np.int64], task: TaskConfig) -> npt.NDArray[np.float64]:
    mean, std = np.array(task.mean), np.array(task.std)
    by_contrast = _shape_difference(statistics["std"], _with_other_bands(std, coastal=0.7)[orders])
    # Where each order has blue, green and red: (N, 3).
    visible = np.array([[list(order).index(band) for band in range(3)] for order in orders.tolist()])
    by_rest = []
    for air in (0, -1, 1):
        reference = np.maximum(mean + air * PATH_REFLECTANCE, FLOOR)
        darkest = np.maximum(reference - DARKEST * std, FLOOR)[:3]
        brightness = _with_other_bands(reference, coastal=1.0)[orders]
        by_rest.append(_shape_difference(statistics["q50"], brightness) + _shape_difference(statistics["q02"][visible], darkest))
    distances: npt.NDArray[np.float64] = by_contrast + np.min(by_rest, axis=0)
    return distances


def _with_other_bands(reference: npt.NDArray[np.float64], *, coastal: float) -> npt.NDArray[np.float64]:
    """The six bands' reference and what to expect of coastal aerosol (`coastal` × blue) and of two red edges: (6,) → (9,)."""
    red, nir = reference[2], reference[3]
    return np.array([*reference, coastal * reference[0], 0.8 * red + 0.2 * nir, 0.35 * red + 0.65 * nir])


def _shape_difference(values: npt.NDArray[np.float64], references: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """values and references, one of them (bands,) and the other (N, bands) → (N,)."""
    differences = np.log(np.maximum(values, FLOOR)) - np.log(np.maximum(references, FLOOR))
    differences -= differences.mean(axis=1, keepdims=True)
    squared: npt.NDArray[np.float64] = (differences**2).sum(axis=1)
    return squared
