"""Real imagery through the whole local stack: inventory, validation, a few steps of fine-tuning, prediction and endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

ROOT = Path(__file__).resolve().parents[2]
FEW_STEPS = (
    "--config", "configs/demo.yaml", "--set", "training.max_steps=4", "--set", "training.crop_size=128", "--set", "training.batch_size=2",
    "--set", "inference.tile=128", "--set", "promotion.min_iou=0", "--set", "promotion.min_gain_over_baseline=-1",
)  # fmt: skip
pytestmark = [pytest.mark.real_data, pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("home")
    made = {**os.environ, "HLS_FOUNDRY_HOME": str(home / "foundry"), "ZENML_CONFIG_PATH": str(home / "zenml")}
    yield made
    for task in ("burn_scars", "flood"):
        subprocess.run([sys.executable, ROOT / "run.py", "endpoints", "--delete", task], env=made, capture_output=True)


def run(environment: dict[str, str], *arguments: str | Path) -> str:
    command = [sys.executable, ROOT / "run.py", *map(str, arguments)]
    answer = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout


def quarters(source: Path, name: str, folder: Path) -> Iterator[Path]:
    """Cut a GeoTIFF into four of half its side, each with its own place on the ground and, in its name, its own day of the year."""
    with rasterio.open(source) as whole:
        side = whole.width // 2
        for number, (row, column) in enumerate(((0, 0), (0, side), (side, 0), (side, side))):
            window = Window(column, row, side, side)
            target = folder / name.format(85 + 66 * number)
            target.parent.mkdir(parents=True, exist_ok=True)
            profile = {**whole.profile, "width": side, "height": side, "transform": whole.window_transform(window)}
            for key in ("blockxsize", "blockysize", "tiled"):
                profile.pop(key, None)
            with rasterio.open(target, "w", **profile) as part:
                part.write(whole.read(window=window))
                part.descriptions = whole.descriptions
            yield target


def test_a_real_flood_chip_from_file_to_endpoint(environment: dict[str, str], shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "sen1floods11"
    list(quarters(source / "S2Hand" / "Spain_7370579_S2Hand.tif", "S2Hand/Spain_{:03d}_S2Hand.tif", tmp_path))
    list(quarters(source / "LabelHand" / "Spain_7370579_LabelHand.tif", "LabelHand/Spain_{:03d}_LabelHand.tif", tmp_path))
    summary = tmp_path / "summary.json"
    run(environment, "--task", "flood", "--data", tmp_path, *FEW_STEPS, "--json", summary)
    content = json.loads(summary.read_text())
    assert content["data"] == {**content["data"], "chips": 4, "valid": 4, "quarantined": 0}
    assert content["inference_test"]["errors"] == 0
    assert content["inference_test"]["agreement"] >= 0.9999
    whole = tmp_path / "whole.tif"
    run(environment, "predict", source / "S2Hand" / "Spain_7370579_S2Hand.tif", "--endpoint", "flood", "--out", whole)
    with rasterio.open(whole) as mask:
        assert mask.shape == (512, 512)
        assert set(np.unique(mask.read(1))) <= {0, 1, 255}


def test_a_real_hls_chip_with_float_values_times_10000_is_predicted(environment: dict[str, str], shared_data: Path, tmp_path: Path) -> None:
    """After the flood test: its endpoint answers."""
    chip = shared_data / "hls" / "hls_l30_10band_224.tif"
    out = tmp_path / "mask.tif"
    run(environment, "predict", chip, "--endpoint", "flood", "--bands", "2,3,4,5,6,7", "--scale", "0.0001", "--out", out)
    with rasterio.open(out) as mask, rasterio.open(chip) as scene:
        assert (mask.crs, mask.transform, mask.shape) == (scene.crs, scene.transform, scene.shape)


def test_a_real_burn_scar_label_on_real_ground_from_file_to_endpoint(
    environment: dict[str, str], shared_data: Path, tmp_path: Path
) -> None:
    """The label is real, with its own odd CRS; the ground is real too, and its scar is painted (no burnt image is at hand)."""
    label = shared_data / "hls" / "subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif"
    ground = np.load(shared_data / "cloud" / "sentinel2_toa_512.npz")["img"].transpose(2, 0, 1)  # (6, 512, 512) reflectance
    ground = ground - np.quantile(ground, 0.01, axis=(1, 2), keepdims=True) + 0.01  # top of atmosphere to surface: dark object subtraction
    with rasterio.open(label) as source:
        burnt, profile = source.read(1) == 1, source.profile
    char = np.array([0.05, 0.05, 0.06, 0.08, 0.14, 0.16], np.float32)[:, None, None]
    image = np.where(burnt, 0.15 * ground + char, ground).astype(np.float32)
    whole = tmp_path / "whole.tif"
    with rasterio.open(whole, "w", **{**profile, "count": 6, "dtype": "float32", "nodata": -9999, "interleave": "band"}) as target:
        target.write(image)
    data = tmp_path / "data"
    name = "training/subsetted_512x512_HLS.S30.T10TGS.2018{:03d}.v1.4"
    list(quarters(whole, name + "_merged.tif", data))
    list(quarters(label, name + ".mask.tif", data))
    summary = tmp_path / "summary.json"
    run(environment, "--data", data, *FEW_STEPS, "--json", summary)
    content = json.loads(summary.read_text())
    assert content["status"] == "completed"
    assert content["inference_test"]["errors"] == 0
    assert content["inference_test"]["agreement"] >= 0.9999
