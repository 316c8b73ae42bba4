"""The spectral-index baseline: its threshold is the best one, and odd pixels do not harm it."""

from __future__ import annotations

import numpy as np
import pytest

from hls_foundry.config import IndexConfig
from hls_foundry.errors import SplitError
from hls_foundry.evaluation.baseline import SpectralIndex, normalised_difference

NBR = IndexConfig(name="NBR", bands=("nir", "swir2"), positive="below")
MNDWI = IndexConfig(name="MNDWI", bands=("green", "swir1"), positive="above")


def overlapping_classes(seed: int, index: IndexConfig) -> tuple[np.ndarray, np.ndarray]:
    """Two classes whose index overlaps, so that no threshold is perfect."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((64, 64)) < 0.3).astype(np.int16)
    side = -1 if index.positive == "below" else 1
    values = np.clip(rng.normal(0.1, 0.2, mask.shape) + side * 0.35 * mask, -0.95, 0.95)
    pixels = np.full((6, 64, 64), 0.2, np.float32)
    a, b = (("blue", "green", "red", "nir", "swir1", "swir2").index(band) for band in index.bands)
    pixels[a] = 0.2 * (1 + values)
    pixels[b] = 0.2 * (1 - values)
    return pixels, mask


def iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    scored = (mask >= 0) & (predicted >= 0)
    found, there = (predicted == 1) & scored, (mask == 1) & scored
    return float((found & there).sum() / (found | there).sum())


@pytest.mark.parametrize("index", [NBR, MNDWI], ids=lambda index: index.name)
def test_no_other_threshold_has_a_better_pooled_iou(index: IndexConfig) -> None:
    chips = [overlapping_classes(seed, index) for seed in range(3)]
    fitted = SpectralIndex.fit((pixels for pixels, _ in chips), (mask for _, mask in chips), index)
    masks = np.stack([mask for _, mask in chips])

    def pooled(threshold: float) -> float:
        other = SpectralIndex(index.name, index.bands, index.positive, threshold)
        return iou(np.stack([other.predict(pixels) for pixels, _ in chips]), masks)

    chosen = pooled(fitted.threshold)
    assert 0.3 < chosen < 0.99
    assert chosen >= max(pooled(threshold) for threshold in np.linspace(-1, 1, 401)) - 0.002


def test_ignored_and_empty_pixels_have_no_say_in_the_threshold() -> None:
    pixels, mask = overlapping_classes(0, NBR)
    clean = SpectralIndex.fit([pixels], [mask], NBR)
    spoilt, labels = pixels.copy(), mask.copy()
    labels[:8], spoilt[3, :8], spoilt[5, :8] = -1, 0.9, 0.01
    spoilt[:, 8:10] = np.nan
    again = SpectralIndex.fit([spoilt], [labels], NBR)
    only_rest = SpectralIndex.fit([pixels[:, 10:]], [mask[10:]], NBR)
    assert again.threshold == only_rest.threshold
    assert abs(again.threshold - clean.threshold) < 0.1


def test_zero_over_zero_is_background_and_no_data_stays_no_data() -> None:
    pixels = np.zeros((6, 2, 2), np.float32)
    pixels[:, 0, 1] = np.nan
    pixels[3, 1, 0], pixels[5, 1, 0] = 0.05, 0.2
    predicted = SpectralIndex("NBR", ("nir", "swir2"), "below", 0.0).predict(pixels)
    assert predicted.tolist() == [[0, -1], [1, 0]]
    assert predicted.dtype == np.int16


def test_index_stays_within_its_range_on_negative_reflectance() -> None:
    pixels = np.full((6, 1, 2), 0.1, np.float32)
    pixels[5, 0] = (-0.05, -0.2)
    values = normalised_difference(pixels, ("nir", "swir2"))
    assert values[0, 0] == 1.0
    assert np.isnan(values[0, 1])


@pytest.mark.parametrize("label", [0, 1])
def test_training_chips_of_one_class_are_refused_by_name(label: int) -> None:
    pixels, mask = overlapping_classes(0, NBR)
    with pytest.raises(SplitError, match=f"no labelled pixel of class {1 - label}") as error:
        SpectralIndex.fit([pixels], [np.full_like(mask, label)], NBR)
    assert "\n" not in str(error.value)
