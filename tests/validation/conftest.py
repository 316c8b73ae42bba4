"""Real data sets to plant mistakes in: synthetic chips on disk, copied for each test that changes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hls_foundry.chips.inventory import build_inventory
from hls_foundry.chips.synthetic import generate
from hls_foundry.config import FoundryConfig, load_config
from hls_foundry.validation.report import ValidationReport
from hls_foundry.validation.run import check

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHIPS = 20
Change = Callable[[np.ndarray, dict], tuple[np.ndarray, dict]]


def pairs(root: Path) -> list[tuple[Path, Path]]:
    """Image and mask of every chip, sorted by name."""
    images = sorted([*root.rglob("*_merged.tif"), *root.rglob("*_S2Hand.tif")], key=lambda path: path.name)
    return [(image, mask_of(image)) for image in images]


def mask_of(image: Path) -> Path:
    if image.name.endswith("_merged.tif"):
        return image.with_name(image.name.replace("_merged.tif", ".mask.tif"))
    return image.parents[1] / "LabelHand" / image.name.replace("S2Hand", "LabelHand")


def rewrite(path: Path, change: Change) -> None:
    """Write the file again with other pixels or another profile."""
    with rasterio.open(path) as dataset:
        pixels, profile, tags = dataset.read(), dict(dataset.profile), dataset.tags()
        descriptions = dataset.descriptions
    pixels, profile = change(pixels, profile)
    profile |= {"dtype": pixels.dtype, "count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
        if len(descriptions) == pixels.shape[0]:
            dataset.descriptions = descriptions


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task → a sound data set; not to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    for task in ("burn_scars", "flood"):
        generate(task, folder / task, chips=CHIPS, size=128, seed=5)
    return {task: folder / task for task in ("burn_scars", "flood")}


@pytest.fixture
def copy_of(sound: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copied(task: str) -> Path:
        return Path(shutil.copytree(sound[task], tmp_path / task))

    return copied


def configuration(task: str, *overrides: str) -> FoundryConfig:
    return load_config(CONFIGS, task=task, overrides=overrides)


def judge(root: Path, task: str, *overrides: str) -> ValidationReport:
    """Inventory and suite with the task's configuration."""
    config = configuration(task, *overrides)
    return check(build_inventory(root, config.task, config.data), None, config.task, config.validation, config.data)
