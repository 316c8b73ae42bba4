"""The synthetic data sets: deterministic, whole or absent, georeferenced, plausible, and hard for an index but not impossible."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.synthetic import SyntheticChip, generate, synthetic_chip
from hls_foundry.chips.synthetic.catalogue import REGIONS, TILE_PIXELS, capacity, place_chip, tile_origin
from hls_foundry.chips.synthetic.landcover import COVERS
from hls_foundry.config import load_config
from hls_foundry.errors import SourceError

TASKS = ("burn_scars", "flood")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@lru_cache(maxsize=8)
def chips_of(task: str, seed: int, count: int = 40, size: int = 96) -> list[SyntheticChip]:
    return [synthetic_chip(task, index, size, seed) for index in range(count)]


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def index_of(chip: SyntheticChip, task: str) -> np.ndarray:
    a, b = (chip.pixels[3], chip.pixels[5]) if task == "burn_scars" else (chip.pixels[1], chip.pixels[4])
    return (a - b) / (a + b + 1e-6)


def baseline_iou(task: str, seed: int) -> float:
    """IoU of class 1 on the test chips with the one threshold that is best on the training chips."""
    edges = np.linspace(-1, 1, 401)
    counts = {split: np.zeros((2, 400)) for split in ("train", "test", "validation")}
    for chip in chips_of(task, seed):
        index = np.clip(index_of(chip, task), -1, 1)
        for label in (0, 1):
            counts[chip.listed_split][label] += np.histogram(index[chip.mask == label], edges)[0]
    step = 1 if task == "burn_scars" else -1  # burnt is low, water is high
    scores = {}
    for split, (background, positive) in counts.items():
        true, false = np.cumsum(positive[::step]), np.cumsum(background[::step])
        scores[split] = true / (false + positive.sum())
    return float(scores["test"][scores["train"].argmax()])


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_give_the_same_bytes_whatever_the_workers(task: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    generate(task, tmp_path / "one", chips=7, size=64, seed=5, workers=1)
    generate(task, tmp_path / "two", chips=7, size=64, seed=5, workers=2, progress=lambda *done: told.append(done))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert told == [(number, 7) for number in range(1, 8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_another_seed_gives_other_chips() -> None:
    first, second = (synthetic_chip("flood", 0, 64, seed) for seed in (1, 2))
    assert not np.array_equal(first.pixels, second.pixels)


def test_burn_scars_have_the_layout_of_the_public_data_set(tmp_path: Path) -> None:
    generate("burn_scars", tmp_path / "data", chips=10, size=64, seed=3, workers=1)
    for folder, count in (("training", 6), ("validation", 2), ("test", 2)):
        images = sorted((tmp_path / "data" / folder).glob("*_merged.tif"))
        assert len(images) == count
        assert [path.name.replace("_merged.tif", ".mask.tif") for path in images] == sorted(
            path.name for path in (tmp_path / "data" / folder).glob("*.mask.tif")
        )
        assert all(path.name.startswith("subsetted_64x64_HLS.S30.T") and path.name.endswith(".v1.4_merged.tif") for path in images)


def test_floods_have_the_layout_and_lists_of_the_public_data_set(tmp_path: Path) -> None:
    generate("flood", tmp_path / "data", chips=10, size=64, seed=3, workers=1)
    images = {path.name for path in (tmp_path / "data" / "S2Hand").iterdir()}
    labels = {path.name for path in (tmp_path / "data" / "LabelHand").iterdir()}
    listed: list[list[str]] = []
    for name, count in (("flood_train_data.csv", 6), ("flood_valid_data.csv", 2), ("flood_test_data.csv", 2)):
        rows = [line.split(",") for line in (tmp_path / "data" / "splits" / name).read_text().splitlines()]
        assert len(rows) == count
        listed += rows
    assert {row[0] for row in listed} == images
    assert {row[1] for row in listed} == labels
    assert all(image.removesuffix("_S2Hand.tif") == label.removesuffix("_LabelHand.tif") for image, label in listed)


@pytest.mark.parametrize("task", TASKS)
def test_files_are_georeferenced_dated_int16_with_six_named_bands(task: str, tmp_path: Path) -> None:
    generate(task, tmp_path / "data", chips=3, size=64, seed=9, workers=1)
    for number in range(3):
        chip = synthetic_chip(task, number, 64, 9)
        (image,) = (path for path in tmp_path.rglob(f"{chip.name}*") if path.name.endswith(("_merged.tif", "_S2Hand.tif")))
        (label,) = (path for path in tmp_path.rglob(f"{chip.name}*") if path.name.endswith((".mask.tif", "_LabelHand.tif")))
        with rasterio.open(image) as pixels, rasterio.open(label) as mask:
            assert pixels.dtypes == ("int16",) * 6
            assert pixels.descriptions == BANDS
            assert (pixels.nodata, mask.nodata) == (-9999, -1)
            assert pixels.crs == mask.crs
            assert str(pixels.crs.to_epsg()).startswith(("326", "327"))
            assert pixels.transform == mask.transform == chip.grid.transform
            assert pixels.res == (30.0, 30.0)
            assert date.fromisoformat(pixels.tags()["ACQUISITION_DATE"]) == chip.acquired
            assert pixels.tags()["TIFFTAG_DATETIME"].startswith(f"{chip.acquired:%Y:%m:%d}")
            counts = pixels.read()
            expected = np.where(np.isnan(chip.pixels), -9999, np.rint(np.nan_to_num(chip.pixels) * 10000))
            assert np.array_equal(counts, expected)
            assert np.array_equal(mask.read(1), chip.mask)
            middle = Transformer.from_crs(pixels.crs, 4326, always_xy=True).transform(*pixels.xy(32, 32))
        region = next(region for region in REGIONS[task] if f"T{region.mgrs}" == chip.tile)
        band = "CDEFGHJKLMNPQRSTUVWX".index(region.mgrs[2]) * 8 - 80  # 100 km squares reach over its edges by up to a degree
        assert band - 1 < middle[1] < band + 9
        assert int((middle[0] + 180) // 6) + 1 in (region.zone - 1, region.zone, region.zone + 1)


def test_tile_corners_are_those_of_the_real_tiles() -> None:
    """T10TGS as in the real label ../shared/data/hls/subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif."""
    assert tile_origin(REGIONS["burn_scars"][0])[:2] == (699960.0, 5200020.0)


@pytest.mark.real_data
def test_chips_of_t10tgs_share_the_grid_of_the_real_label(shared_data: Path) -> None:
    left, top, _ = tile_origin(REGIONS["burn_scars"][0])
    with rasterio.open(shared_data / "hls" / "subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif") as label:
        assert (label.transform.c, label.transform.f) == (left, top)


@pytest.mark.parametrize("task", TASKS)
def test_names_are_unique_tiles_stay_on_one_side_and_chips_do_not_overlap(task: str) -> None:
    places = [place_chip(task, index, 512, 4) for index in range(200)]
    assert len({place.name for place in places}) == 200
    sides: dict[str, set[str]] = {}
    ground: set[tuple[str, int, int]] = set()
    dates: set[tuple[str, date]] = set()
    for place in places:
        sides.setdefault(place.region.mgrs, set()).add(place.listed_split)
        left, top, _ = tile_origin(place.region)
        column, row = (place.grid.transform.c - left) / 30 / 512, (top - place.grid.transform.f) / 30 / 512
        assert column == int(column)
        assert row == int(row)
        assert 0 <= max(column, row) < TILE_PIXELS // 512
        ground.add((place.region.mgrs, int(column), int(row)))
        dates.add((place.region.mgrs, place.acquired))
    assert len(sides) == 20
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(ground) == len(dates) == 200
    assert {place.listed_split for place in places[:4]} == {"train", "validation", "test"}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_index_baseline_is_useful_but_not_enough(task: str, seed: int) -> None:
    assert 0.45 <= baseline_iou(task, seed) <= 0.75


@pytest.mark.parametrize("task", TASKS)
def test_class_balance_and_coherent_shapes(task: str) -> None:
    shares = np.array([(chip.mask == 1).mean() for chip in chips_of(task, 1)])
    assert np.mean((shares > 0.02) & (shares < 0.5)) > 0.7
    assert (shares < 0.02).any()
    masks = [chip.mask for chip in chips_of(task, 1) if (chip.mask == 1).mean() > 0.02]
    edges = sum(int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()) for mask in masks)
    # Speckle has about two pixels of edge a pixel; a disc of 40 pixels across has a tenth.
    assert edges / sum(int((mask == 1).sum()) for mask in masks) < 0.35


@pytest.mark.parametrize("task", TASKS)
def test_band_means_are_near_the_reference_of_the_task(task: str) -> None:
    reference = load_config(CONFIGS, task=task).task
    pixels = np.concatenate([chip.pixels.reshape(6, -1)[:, ::7] for chip in chips_of(task, 1)], axis=1)
    distance = (np.nanmean(pixels, axis=1) - np.array(reference.mean)) / np.array(reference.std)
    assert np.abs(distance).max() < 1.5


def pixels_where(task: str, covers: tuple[str, ...], label: int) -> np.ndarray:
    """(6, N) pixels of these covers and this label, in the sun and under clear sky."""
    codes = [COVERS.index(cover) for cover in covers]
    found = []
    for chip in chips_of(task, 1):
        clear = np.maximum(chip.layers["cloud"], chip.layers["shadow"]) < 0.01
        found.append(chip.pixels[:, clear & np.isin(chip.layers["cover"], codes) & (chip.mask == label)])
    return np.concatenate(found, axis=1)


def test_spectra_of_land_are_plausible() -> None:
    forest, soil = (pixels_where("burn_scars", covers, 0) for covers in (("conifer", "broadleaf"), ("ploughed",)))
    blue, _, red, nir, swir1, swir2 = np.median(forest, axis=1)
    assert (nir - red) / (nir + red) > 0.6
    assert nir > swir1 > swir2 > blue
    blue, green, red, nir, swir1, _ = np.median(soil, axis=1)
    assert blue < green < red < nir < swir1
    assert (nir - red) / (nir + red) < 0.4


def test_burnt_ground_has_a_lower_nbr_and_darker_nir_than_the_unburnt() -> None:
    covers = ("conifer", "broadleaf", "shrub", "grass")
    burnt, unburnt = (np.median(pixels_where("burn_scars", covers, label), axis=1) for label in (1, 0))
    nbr_burnt, nbr_unburnt = ((values[3] - values[5]) / (values[3] + values[5]) for values in (burnt, unburnt))
    assert nbr_burnt < 0.05
    assert nbr_unburnt > 0.15
    assert burnt[3] < 0.75 * unburnt[3]


def test_severity_varies_and_darkens() -> None:
    scars = [chip for chip in chips_of("burn_scars", 1) if (chip.mask == 1).mean() > 0.05]
    severity = np.concatenate([chip.layers["event"][chip.mask == 1] for chip in scars])
    nir = np.concatenate([chip.pixels[3][chip.mask == 1] for chip in scars])
    assert np.quantile(severity, 0.9) - np.quantile(severity, 0.1) > 0.25
    assert np.median(nir[severity > 0.8]) < np.median(nir[severity < 0.5])


def test_water_is_dark_in_the_short_wave_infrared() -> None:
    water, land = pixels_where("flood", ("river", "lake"), 1), pixels_where("flood", ("grass", "crop", "broadleaf"), 0)
    assert np.quantile(water[4], 0.9) < 0.08 < np.quantile(land[4], 0.1)
    # Top of atmosphere: air brightens blue.
    assert np.median(land[0]) > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_nodata_and_thick_cloud_are_ignored_and_nothing_else(task: str) -> None:
    missing_somewhere = cloudy_somewhere = False
    for chip in chips_of(task, 1):
        missing = np.isnan(chip.pixels).any(axis=0)
        assert np.array_equal(missing, np.isnan(chip.pixels).all(axis=0))
        thick = chip.layers["cloud"] > 0.5
        assert np.array_equal(chip.mask == -1, missing | thick)
        assert set(np.unique(chip.mask)) <= {-1, 0, 1}
        missing_somewhere |= bool(missing.any())
        cloudy_somewhere |= bool(thick.any())
        assert np.nanmin(chip.pixels) > -0.05
        assert np.nanmax(chip.pixels) < 1.7
        assert not missing.all()
    assert missing_somewhere
    assert cloudy_somewhere


@pytest.mark.parametrize("size", [64, 100, 512])
def test_other_sizes_work(size: int) -> None:
    chip = synthetic_chip("flood", 1, size, 1)
    assert chip.pixels.shape == (6, size, size)
    assert chip.pixels.dtype == np.float32
    assert chip.mask.dtype == np.int16
    assert chip.mask.shape == (size, size) == (chip.grid.height, chip.grid.width)


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_leaves_nothing(workers: int, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise Interruption

    with pytest.raises(Interruption):
        generate("burn_scars", tmp_path / "data", chips=50, size=64, seed=1, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from hls_foundry.chips.synthetic import generate; import sys\n"
        "generate('flood', Path(sys.argv[1]), chips=400, size=64, seed=1, workers=2, progress=lambda *done: print(*done, flush=True))"
    )
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-", str(tmp_path / "data")]  # from standard input, where multiprocessing could not start
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(script.encode())
        child.stdin.close()
        assert child.stdout.readline().split()[1] == b"400"
        child.send_signal(signal.SIGINT)
        child.wait(timeout=20)
    time.sleep(0.2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chips": 0}, "chips=0"),
        ({"size": 10}, "size=10"),
        ({"size": 5000}, "size=5000"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
        ({"chips": capacity(64) + 1}, "the tiles hold"),
        ({"task_name": "clouds"}, "task 'clouds'"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    good: dict[str, object] = {"task_name": "flood", "chips": 2, "size": 64, "seed": 1}
    with pytest.raises(SourceError) as raised:
        generate(folder=tmp_path / "data", **(good | arguments))  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_folders_with_content_or_without_permission_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(SourceError, match="has content"):
        generate("flood", tmp_path / "full", chips=1, size=64, seed=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        generate("flood", tmp_path / "file" / "data", chips=1, size=64, seed=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A worker may write files of at most 8 kB: what a full disk does to it, without a disk to fill."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from hls_foundry.chips.synthetic import generate\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "generate('flood', Path(sys.argv[1]), chips=4, size=64, seed=1, workers=2)"
    )
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")], capture_output=True, text=True, env=environment, timeout=60
    )
    assert "SourceError: synthetic chips cannot be written to" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_forest_is_labelled_from_the_land_cover_and_nothing_burns() -> None:
    chips = [synthetic_chip("forest", index, 64, 3) for index in range(12)]
    trees = [COVERS.index(name) for name in ("conifer", "broadleaf")]
    for chip in chips:
        labelled = chip.mask >= 0
        assert np.array_equal(chip.mask[labelled] == 1, np.isin(chip.layers["cover"], trees)[labelled])
        assert not chip.layers["event"].any()
    assert 0.1 < np.mean([(chip.mask == 1).mean() for chip in chips]) < 0.6
