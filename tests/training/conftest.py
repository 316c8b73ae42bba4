"""A small real data set on disk, and requests to train on it that take seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine

from hls_foundry.config import load_config
from hls_foundry.training.request import TrainingRequest

ROOT = Path(__file__).resolve().parents[2]
MakeRequest = Callable[..., TrainingRequest]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_chip(folder: Path, name: str, index: int, size: int = 80) -> None:
    """A chip whose scar is dark in NIR and bright in SWIR 2: learnable in a few steps. Chip 2 has a nodata corner."""
    rng = np.random.default_rng(index)
    pixels = np.tile(np.array([0.04, 0.06, 0.06, 0.28, 0.2, 0.12], np.float32)[:, None, None], (1, size, size))
    label = np.zeros((size, size), np.int16)
    top, left = rng.integers(0, size // 2, 2)
    label[top : top + size // 2, left : left + size // 3] = 1
    pixels[:, label == 1] = np.array([0.05, 0.05, 0.06, 0.1, 0.2, 0.26], np.float32)[:, None]
    pixels += rng.normal(0, 0.01, pixels.shape).astype(np.float32)
    label[:3, :3] = -1
    if index == 2:
        pixels[:, :9, -9:] = -9999
    grid = {
        "transform": Affine(30, 0, 500000 + index * 9000, 0, -30, 4100000),
        "crs": "EPSG:32610",
        "width": size,
        "height": size,
    }
    with rasterio.open(folder / f"{name}_merged.tif", "w", driver="GTiff", count=6, dtype="float32", nodata=-9999, **grid) as file:
        file.write(pixels)
    with rasterio.open(folder / f"{name}.mask.tif", "w", driver="GTiff", count=1, dtype="int16", nodata=-1, **grid) as file:
        file.write(label, 1)


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with six training and two validation chips of 80×80 pixels, and splits.csv."""
    folder = tmp_path_factory.mktemp("chips")
    rows = []
    for index in range(8):
        name = f"subsetted_HLS.S30.T10TG{'STUVWXYZ'[index]}.20182{index:02d}.v1.4"
        write_chip(folder, name, index)
        split = "train" if index < 6 else "validation"
        rows.append({"chip": name, "image": f"{name}_merged.tif", "mask": f"{name}.mask.tif", "split": split, "digest": str(index)})
    pd.DataFrame(rows).to_csv(folder / "splits.csv", index=False)
    return folder


@pytest.fixture
def make_request(chips: Path, tmp_path: Path) -> MakeRequest:
    """make_request(folder="work", splits=None, **{"training.max_steps": 4, …})."""

    def make(folder: str = "work", splits: Path | None = None, **changes: Any) -> TrainingRequest:
        settings = {
            "model.variant": "v2_tiny_tl", "model.weights": "none", "model.image_size": 64, "model.auxiliary_weight": 0.0,
            "model.head": "unet", "model.head_channels": 16, "model.dropout": 0.1,
            "training.crop_size": 64, "training.batch_size": 4, "training.epochs": 4, "training.max_steps": 6, "training.warmup_steps": 2,
            "training.learning_rate": 0.001, "training.validate_every": 3, "training.checkpoint_every": 2, "training.precision": "fp32",
            "inference.tile": 64, **changes,
        }  # fmt: skip
        overrides = tuple(f"{key}={'null' if value is None else value}" for key, value in settings.items())
        config = load_config(ROOT / "configs", task="burn_scars", source=str(chips), overrides=overrides)
        return TrainingRequest(
            task=config.task, data=config.data, model=config.model, training=config.training, inference=config.inference,
            splits_table=splits or chips / "splits.csv", root=chips, folder=tmp_path / folder,
        )  # fmt: skip

    return make
