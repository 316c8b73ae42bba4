"""Whether masks belong to their images: how well the task's index tells class 1 from class 0 inside single chips.

A mask of another place has the right grid, values and shares; only the pixels can tell. The index alone maps no scar and no flood
well, but inside one chip a pixel of class 1 outranks one of class 0 far more often than not. A mask of another place makes it a
coin toss, an inverted one the opposite.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hls_foundry.chips.reader import ChipReader, read_mask
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import ChipError
from hls_foundry.evaluation.baseline import normalised_difference

CHIPS = 24  # looked at, spread over the data set: enough for a median, and their cost does not grow with the data set
SAMPLE_SIDE = 128  # about 128 × 128 pixels of a chip, as in the inventory
BINS = 512
MIN_PIXELS = 50  # of each class
MIN_SHARE = 0.01  # of class 1 and of class 0: smaller ones are often the edge of something


def measure_separability(root: Path, chips: pd.DataFrame, task: TaskConfig, data: DataConfig) -> pd.Series:
    """For up to 24 chips that have both classes: the chance (0–1) that the index ranks a pixel of class 1 before one of class 0.

    Equals the area under the ROC curve of the index. Float64, indexed like `chips`; NaN for chips not looked at.
    """
    separability = np.full(len(chips), np.nan)
    both = chips[chips["usable"] & chips["same_grid"] & chips["positive_share"].between(MIN_SHARE, 1 - MIN_SHARE)]
    if both.empty:
        return pd.Series(separability, index=chips.index)
    chosen = both["chip"].iloc[np.unique(np.linspace(0, len(both) - 1, min(CHIPS, len(both))).round().astype(int))]
    positions = np.flatnonzero(chips["chip"].isin(chosen))

    def measure(position: int) -> float:
        row = chips.iloc[position]
        try:
            with ChipReader(root / row["image"], bands=data.bands, scale=data.scale, nodata=data.nodata) as reader:
                raw = reader.read_raw()
                rows, columns = (max(1, round(side / SAMPLE_SIDE)) for side in raw.shape[1:])
                values = normalised_difference(reader.reflectance(raw[:, ::rows, ::columns].copy()), task.index.bands)
            mask = read_mask(root / row["mask"])[::rows, ::columns]
        except ChipError:
            return float("nan")  # read by the inventory a moment ago: gone or changed since, which the next reader will say
        return rank_chance(values, mask, above=task.index.positive == "above")

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="separability") as pool:
        separability[positions] = list(pool.map(measure, positions))
    return pd.Series(separability, index=chips.index)


def rank_chance(values: npt.NDArray[np.float32], mask: npt.NDArray[np.int16], *, above: bool) -> float:
    """The chance that a pixel of class 1 has the larger (`above`; else the smaller) index; NaN with too few pixels of either class."""
    counts = np.zeros((2, BINS))
    for label in (0, 1):
        chosen = values[(mask == label) & np.isfinite(values)]
        if chosen.size < MIN_PIXELS:
            return float("nan")
        counts[label] = np.bincount(np.clip((chosen + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64), minlength=BINS) / chosen.size
    background, positive = counts
    below = np.concatenate([[0.0], np.cumsum(background)[:-1]])
    chance = float((positive * (below + background / 2)).sum())
    return chance if above else 1.0 - chance
