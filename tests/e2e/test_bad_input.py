"""Bad input at the command line: one line that says what, where and what to do; exit 2; nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from hls_foundry.chips.synthetic import generate

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "--pipeline", "train", "--config", str(ROOT / "configs" / "demo.yaml"),
    "--set", "training.crop_size=64", "--set", "training.max_steps=2",
    "--set", "training.batch_size=2", "--set", "inference.tile=64", "--set", "validation.max_bad_share=0",
)  # fmt: skip
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chips") / "burn"
    generate("burn_scars", folder, chips=10, size=64, seed=5)
    return folder


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HLS_FOUNDRY_HOME": str(home / "foundry"), "ZENML_CONFIG_PATH": str(home / "zenml")}


def refused(home: Path, *arguments: str | Path) -> str:
    """The one line that run.py ends with."""
    command = [sys.executable, ROOT / "run.py", *QUICK, *map(str, arguments)]
    answer = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=200)
    assert answer.returncode == 2, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert "Traceback" not in answer.stdout + answer.stderr
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("error")]
    assert len(lines) == 1, lines
    left = [path for path in (home / "foundry").rglob("*") if "partial" in path.name or path.name.endswith(".tmp")]
    assert not left
    return lines[0]


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*_merged.tif"))


def mask_of(image: Path) -> Path:
    return image.with_name(image.name.replace("_merged.tif", ".mask.tif"))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **profile: object) -> None:
    with rasterio.open(path) as dataset:
        pixels, known = dataset.read(), {**dataset.profile, **profile}
    changed = change(pixels)
    with rasterio.open(path, "w", **{**known, "count": len(changed), "height": changed.shape[1], "width": changed.shape[2]}) as dataset:
        dataset.write(changed)


def test_a_missing_an_empty_and_a_foreign_folder(home: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(home, "--data", tmp_path / "nowhere")
    assert str(tmp_path) in refused(home, "--data", tmp_path)
    (tmp_path / "notes.txt").write_text("nothing here")
    assert str(tmp_path) in refused(home, "--data", tmp_path)


def test_each_bad_chip_is_named_with_its_reason(home: Path, chips: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(chips, data)
    bad = images(data)
    mask_of(bad[0]).unlink()
    bad[1].write_bytes(bad[1].read_bytes()[: bad[1].stat().st_size // 2])
    bad[2].write_text("this is no TIFF")
    rewrite(bad[3], lambda pixels: pixels[:5])
    rewrite(bad[4], lambda pixels: np.where(np.arange(64) == 7, np.nan, pixels / 10000).astype("float32"), dtype="float32")
    rewrite(bad[5], lambda pixels: np.full_like(pixels, -9999))
    rewrite(mask_of(bad[6]), lambda pixels: np.where(pixels == 0, 7, pixels))
    rewrite(mask_of(bad[7]), lambda pixels: pixels[:, :60])
    shutil.copy(bad[8], bad[9])
    shutil.copy(mask_of(bad[8]), mask_of(bad[9]))
    line = refused(home, "--data", data)
    assert "9 of 10 chips are bad" in line
    page = Path(line.rsplit("see ", 1)[1])
    docs = page.read_text()
    for name in [image.name.removesuffix("_merged.tif") for image in (*bad[:8], bad[9])]:
        assert name in docs
    for reason in ("has no mask", "truncated", "5 bands", "NaN", "no data on 100", "values: 7", "64×60", "the same pixels"):
        assert reason.lower() in docs.lower(), reason


def test_no_positive_pixel_and_a_split_that_stays_empty(home: Path, chips: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(chips, data)
    for image in images(data):
        rewrite(mask_of(image), lambda pixels: np.where(pixels == 1, 0, pixels))
    loose = ("--set", "validation.min_positive_chips=0", "--set", "validation.min_separability=0")
    assert "class 1" in refused(home, "--data", data, *loose)
    shutil.rmtree(data)
    shutil.copytree(chips, data)
    for image in images(data)[2:]:
        image.unlink()
        mask_of(image).unlink()
    assert "empty" in refused(home, "--data", data, *loose)


class Planted:
    """Pickled code: unpickling it would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_checkpoints_that_cannot_be_used(home: Path, chips: Path, tmp_path: Path) -> None:
    other, cut, pickled, mark = (tmp_path / name for name in ("other.pt", "cut.pt", "pickled.pt", "ran"))
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, other)
    cut.write_bytes(other.read_bytes()[:200])
    torch.save({"model": Planted(mark)}, pickled)
    assert "other.pt" in refused(home, "--data", chips, "--set", f"model.weights={other}")
    assert "cut.pt" in refused(home, "--data", chips, "--set", f"model.weights={cut}")
    assert "pickled.pt" in refused(home, "--data", chips, "--set", f"model.weights={pickled}")
    assert not mark.exists()


def interrupted(command: list[str], home: Path, line: str) -> str:
    """What the command says that gets a Ctrl-C once it has printed a line that begins so; with "", while it is still starting."""
    process = subprocess.Popen(
        command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    said = ""
    if not line:
        time.sleep(1.5)
    while line and not said.rpartition("\n")[2].startswith(line):
        said = said + "\n" + process.stdout.readline().rstrip()
        assert process.poll() is None, said
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    return said + rest


def test_ctrl_c_at_any_moment_leaves_nothing_half_written_and_the_command_can_be_run_again(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), *QUICK, "--data", "synthetic://?chips=12&size=64&seed=9"]
    longer = [*command, "--set", "training.max_steps=400"]
    for moment in ("", "ingest ", "validate ", "step ", "evaluate "):
        assert "Traceback" not in interrupted(longer, tmp_path, moment), moment
        left = [path for path in (tmp_path / "foundry").rglob("*") if "partial" in path.name or path.name.endswith(".tmp")]
        assert not left, moment
    loose = ("--set", "promotion.min_iou=0", "--set", "promotion.min_gain_over_baseline=-1", "--set", "validation.max_bad_share=1")
    answer = subprocess.run([*command, *loose], env=environment(tmp_path), capture_output=True, text=True, timeout=200)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
