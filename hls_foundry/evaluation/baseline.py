"""The spectral index that every scientist tries first, with its threshold chosen on the training chips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import IndexConfig
from hls_foundry.errors import SplitError

BINS = 4000  # of the pooled histogram over [-1, 1]: thresholds in steps of 0.0005


@dataclass(frozen=True)
class SpectralIndex:
    """(a − b) / (a + b) with a threshold: class 1 lies `positive` ("below" or "above") of it.

    Source: NBR, Key & Benson 2006 (class 1 below); MNDWI, Xu 2006 (class 1 above).
    """

    name: str
    bands: tuple[str, str]
    positive: Literal["below", "above"]
    threshold: float

    @classmethod
    def fit(cls, images: Iterable[npt.NDArray[np.float32]], masks: Iterable[npt.NDArray[np.int16]], index: IndexConfig) -> SpectralIndex:
        """Choose the threshold with the best IoU of class 1 over all pixels of all chips together.

        `images`: float32 (6, H, W) reflectance, NaN = no data; `masks`: int16 (H, W) with 0, 1, −1 = ignored. Both may be
        generators: one chip at a time is held. Pixels without data, without a label, or with an index of 0/0 have no say.
        Raises SplitError where no labelled pixel has class 1, or none has class 0: no threshold can be chosen then.
        """
        counts = np.zeros((2, BINS), np.int64)
        for pixels, mask in zip(images, masks, strict=True):
            values = normalised_difference(pixels, index.bands)
            for label in (0, 1):
                chosen = values[(mask == label) & np.isfinite(values)]
                counts[label] += np.bincount(_bin(chosen), minlength=BINS)
        background, positive = counts
        if not positive.any() or not background.any():
            lacking = 1 if not positive.any() else 0
            raise SplitError(
                f"the training chips have no labelled pixel of class {lacking}: the {index.name} baseline cannot choose a threshold; "
                f"add chips with class {lacking} to the training split"
            )
        # Entry k counts the pixels below the lower edge of bin k, k = 0 … BINS.
        below = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
        false, true = below if index.positive == "below" else below[:, -1:] - below
        iou = true / np.maximum(positive.sum() + false, 1)
        # On ties (an empty stretch of the histogram) the middle of the stretch generalises best.
        best = np.flatnonzero(iou >= iou.max() - 1e-12)
        edge = best[len(best) // 2]
        return cls(index.name, index.bands, index.positive, float(-1.0 + 2.0 * edge / BINS))

    def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
        """int16 (H, W) from float32 (6, H, W) reflectance: 0, 1, and −1 where there is no data. 0/0 counts as class 0."""
        values = normalised_difference(pixels, self.bands)
        with np.errstate(invalid="ignore"):
            found = values < self.threshold if self.positive == "below" else values >= self.threshold
        mask = found.astype(np.int16)
        mask[~np.isfinite(pixels).all(axis=0)] = -1
        return mask


def normalised_difference(pixels: npt.NDArray[np.float32], bands: tuple[str, str]) -> npt.NDArray[np.float32]:
    """(a − b) / (a + b) of two named bands: float32 (H, W) in [−1, 1], NaN where there is no data or a + b ≤ 0.

    Surface reflectance may be slightly negative; then the quotient leaves [−1, 1] and is clipped.
    """
    a, b = (pixels[BANDS.index(band)] for band in bands)
    total = a + b
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(total > 0, (a - b) / total, np.float32(np.nan))
    clipped: npt.NDArray[np.float32] = np.clip(quotient, -1.0, 1.0).astype(np.float32)
    return clipped


def _bin(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.minimum(((values.astype(np.float64) + 1.0) * (BINS / 2)).astype(np.int64), BINS - 1)
