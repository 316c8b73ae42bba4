"""A mask from probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hls_foundry.errors import ConfigError


def mask_from_probabilities(probabilities: npt.NDArray[np.float32], threshold: float | None = None) -> npt.NDArray[np.int16]:
    """int16 (H, W) from float32 (K, H, W): the most probable class, or class 1 from `threshold` (0–1) up; −1 where there is no data.

    Raises ConfigError for a threshold outside 0–1.
    """
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"threshold {threshold} is no probability: give a number from 0 to 1")
    mask: npt.NDArray[np.int16]
    if threshold is not None:
        mask = (probabilities[1] >= threshold).astype(np.int16)
    elif len(probabilities) == 2:
        mask = (probabilities[1] > probabilities[0]).astype(np.int16)  # argmax, many times faster
    else:
        mask = probabilities.argmax(axis=0).astype(np.int16)
    mask[np.isnan(probabilities[0])] = -1
    return mask
