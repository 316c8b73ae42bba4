"""How reflectance is spread in each band over all chips, beside the reference that the task expects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hls_foundry.chips.bands import BANDS

LOW, HIGH, STEP = -0.05, 1.0, 0.01  # reflectance; what lies outside counts in the first and the last bin
EDGES = np.linspace(LOW, HIGH, round((HIGH - LOW) / STEP) + 1)


@dataclass(frozen=True, eq=False)
class BandHistograms:
    """`counts`: int64 (6, bins) of sampled pixels by reflectance, bins as `EDGES`. `mean`, `std`: the task's reference of each band."""

    counts: npt.NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def beyond(self) -> npt.NDArray[np.float64]:
        """(6,): the share of each band's pixels in the first or the last bin, where everything beyond is counted as well."""
        totals = np.maximum(self.counts.sum(axis=1), 1)
        share: npt.NDArray[np.float64] = (self.counts[:, 0] + self.counts[:, -1]) / totals
        return share


def empty_counts() -> npt.NDArray[np.int64]:
    """No pixel yet: (6, bins)."""
    return np.zeros((len(BANDS), len(EDGES) - 1), np.int64)


def count_sorted(sample: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Counts (6, bins) of reflectance (6, pixels) that is finite and sorted along the pixels."""
    bounds = np.stack([np.searchsorted(band, EDGES) for band in sample])
    bounds[:, 0], bounds[:, -1] = 0, sample.shape[1]
    return np.diff(bounds, axis=1).astype(np.int64)
