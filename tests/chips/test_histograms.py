"""Histograms of reflectance: every sampled pixel counts once, and the inventory keeps them with the task's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.histograms import EDGES, BandHistograms, count_sorted
from hls_foundry.chips.inventory import build_inventory
from hls_foundry.chips.synthetic import generate
from hls_foundry.config import load_config


def test_what_lies_beyond_the_bins_counts_in_the_first_and_the_last() -> None:
    band = np.array([-5, EDGES[0], 0.005, 0.005, 0.995, 40], np.float32)
    counts = count_sorted(np.stack([band] * len(BANDS)))
    assert counts.shape == (6, len(EDGES) - 1)
    assert (counts[3, 0], counts[3, 5], counts[3, -1], counts[3].sum()) == (2, 2, 2, 6)
    assert BandHistograms(counts, (0.1,) * 6, (0.1,) * 6).beyond[3] == pytest.approx(4 / 6)


def test_an_inventory_counts_the_pixels_that_its_means_are_of(tmp_path: Path) -> None:
    config = load_config(Path(__file__).resolve().parents[2] / "configs", task="burn_scars")
    generate("burn_scars", tmp_path / "chips", chips=3, size=96, seed=4)
    (tmp_path / "chips" / "training" / "broken_merged.tif").write_bytes(b"II*\0 no")
    inventory = build_inventory(tmp_path / "chips", config.task, config.data)
    assert inventory.histograms
    counts = inventory.histograms.counts
    valid = (1 - inventory.table["nodata_share"]) * 96 * 96
    assert counts.sum(axis=1).tolist() == [round(valid.sum())] * 6
    middles = (EDGES[:-1] + EDGES[1:]) / 2
    mean = (inventory.table["nir_mean"] * valid).sum() / valid.sum()
    assert counts[3] @ middles / counts[3].sum() == pytest.approx(mean, abs=0.005)
    assert (inventory.histograms.mean, inventory.histograms.std) == (config.task.mean, config.task.std)
    assert "counts" not in inventory.table
