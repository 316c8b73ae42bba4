"""The way from splits to a bundle: what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hls_foundry.config import load_config
from hls_foundry.errors import TrainingError
from hls_foundry.training.fine_tune import FineTuneConfig, fine_tune

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_several_frames_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    whole = load_config(CONFIGS, overrides=("model.frames=3",))
    config = FineTuneConfig(task=whole.task, data=whole.data, model=whole.model, training=whole.training, inference=whole.inference)
    table = pd.DataFrame({"chip": ["a"], "image": ["a.tif"], "mask": ["a.mask.tif"], "split": ["train"]})
    with pytest.raises(TrainingError, match=r"model\.frames=3: a chip holds one date"):
        fine_tune(table, tmp_path, config, tmp_path / "home")
    assert not (tmp_path / "home").exists()
