from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch

from hls_foundry.errors import ChipError, Preempted, SplitError
from hls_foundry.training.data import Batches, ChipDataset, Sampler, default_ram_budget
from hls_foundry.training.request import TrainingRequest

MakeRequest = Callable[..., TrainingRequest]
PLENTY = 1 << 30


def dataset(request: TrainingRequest, budget: int = PLENTY) -> ChipDataset:
    return ChipDataset(request, "train", budget)


def test_every_chip_is_drawn_once_an_epoch_in_an_order_of_its_own() -> None:
    sampler = Sampler(chips=10, batch_size=4, seed=7)
    draws = [draw for step in range(5) for draw in sampler.draws(step)]
    epochs = [[index for epoch, index in draws if epoch == e] for e in (0, 1)]
    assert [sorted(order) for order in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert Sampler(10, 4, seed=8).draws(0) != sampler.draws(0)


def test_a_crop_depends_on_seed_epoch_and_chip_alone(make_request: MakeRequest) -> None:
    one, other = dataset(make_request()), dataset(make_request())
    expected = one.crop(3, 1, 64)
    for epoch, index in ((0, 0), (3, 1), (5, 2)):
        again = other.crop(epoch, index, 64)
    again = other.crop(3, 1, 64)
    np.testing.assert_array_equal(again.image, expected.image)
    np.testing.assert_array_equal(again.label, expected.label)
    assert not np.array_equal(one.crop(4, 1, 64).image, expected.image)


def test_crops_read_from_disk_are_those_from_memory(make_request: MakeRequest) -> None:
    held, lazy = dataset(make_request()), dataset(make_request(), budget=0)
    half = dataset(make_request(), budget=2 * 80 * 80 * 25)
    for index in range(6):
        for other in (lazy, half):
            np.testing.assert_array_equal(other.crop(1, index, 64).image, held.crop(1, index, 64).image)
            np.testing.assert_array_equal(other.crop(1, index, 64).label, held.crop(1, index, 64).label)


def test_image_and_label_turn_together(make_request: MakeRequest) -> None:
    """NIR is dark exactly where the label says burnt, whatever the crop, flip or turn; and all eight turns occur."""
    chips = dataset(make_request())
    turns = set()
    for epoch in range(40):
        crop = chips.crop(epoch, 0, 80)
        nir = crop.image[3]
        valid = crop.label >= 0
        assert ((nir < -0.5) == (crop.label == 1))[valid].mean() > 0.99
        turns.add(crop.image.tobytes())
    assert len(turns) == 8


def test_augmentation_can_be_off(make_request: MakeRequest) -> None:
    chips = dataset(make_request(**{"training.flips": "false", "training.rotations": "false"}))
    assert len({chips.crop(epoch, 0, 80).image.tobytes() for epoch in range(12)}) == 1


def test_small_chips_are_reflected_outwards_with_ignored_labels(make_request: MakeRequest) -> None:
    chips = dataset(make_request(**{"training.crop_size": 256, "training.flips": "false", "training.rotations": "false"}))
    crop = chips.crop(0, 1, 256)
    assert crop.image.shape == (6, 256, 256)
    assert np.isfinite(crop.image).all()
    inside = crop.label[88:168, 88:168]
    assert (crop.label == -1).sum() == 256**2 - 80**2 + (inside == -1).sum()
    np.testing.assert_array_equal(crop.image[:, 87, 88:168], crop.image[:, 89, 88:168])


def test_nodata_is_zero_after_normalisation_and_ignored(make_request: MakeRequest) -> None:
    chip = dataset(make_request()).read(2)
    assert not chip.image[:, :9, -9:].any()
    assert (chip.label[:9, -9:] == -1).all()
    assert chip.image[0][chip.label == 0].mean() == pytest.approx((0.04 - 0.0333497) / 0.0226914, abs=0.03)


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_however_shared_a_step_holds_the_same_samples(make_request: MakeRequest, processes: int, accumulation: int) -> None:
    whole = dataset(make_request())
    shared = dataset(make_request(**{"training.accumulation": accumulation}))
    with Batches(whole, 0, 1) as alone:
        expected = list(alone.steps(0, 3))
    pieces = []
    for rank in range(processes):
        with Batches(shared, rank, processes) as batches:
            pieces.append(list(batches.steps(0, 3)))
    for step in range(3):
        parts = [piece[step].batches for piece in pieces]
        images = torch.cat([parts[rank][number].images for number in range(accumulation) for rank in range(processes)])
        torch.testing.assert_close(images, expected[step].batches[0].images, rtol=0, atol=0)
        assert pieces[0][step].chips == expected[step].chips


def test_coordinates_come_from_name_and_grid(make_request: MakeRequest) -> None:
    chips = dataset(make_request(**{"model.coordinates": "true"}))
    batch = chips.batch([(0, 3)])
    assert batch.temporal is not None
    assert batch.location is not None
    assert batch.temporal.tolist() == [[[2018.0, 203.0]]]
    assert batch.location[0].tolist() == pytest.approx([37.03, -122.7], abs=0.05)


def table_of(chips: Path, tmp_path: Path, **changes: object) -> Path:
    table = pd.read_csv(chips / "splits.csv").assign(**changes)
    table.to_csv(tmp_path / "splits.csv", index=False)
    return tmp_path / "splits.csv"


def test_an_empty_split_is_named(make_request: MakeRequest, chips: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no train chips"):
        dataset(make_request(splits=table_of(chips, tmp_path, split="validation")))


def test_training_without_a_positive_pixel_is_refused(make_request: MakeRequest, chips: Path, tmp_path: Path) -> None:
    with rasterio.open(next(chips.glob("*.mask.tif"))) as file:
        profile = file.profile
    with rasterio.open(chips / "empty.tif", "w", **profile) as file:
        file.write(np.zeros((1, 80, 80), np.int16))
    with pytest.raises(SplitError, match="class 'burn scar'"):
        dataset(make_request(splits=table_of(chips, tmp_path, mask="empty.tif")))


def test_a_mask_of_another_size_is_named(make_request: MakeRequest, chips: Path, tmp_path: Path) -> None:
    with rasterio.open(next(chips.glob("*.mask.tif"))) as file:
        profile = {**file.profile, "width": 40}
    with rasterio.open(chips / "small.tif", "w", **profile) as file:
        file.write(np.zeros((1, 80, 40), np.int16))
    with pytest.raises(ChipError, match=r"80×80 pixels and its mask 40×80"):
        dataset(make_request(splits=table_of(chips, tmp_path, mask="small.tif")))


def test_a_signal_stops_the_reading_of_chips(make_request: MakeRequest) -> None:
    with pytest.raises(Preempted, match="stopped by signal 10 while reading chips") as stopped:
        ChipDataset(make_request(), "train", 10**9, lambda: 10)
    assert stopped.value.signal_number == 10


def test_a_slurm_job_keeps_chips_in_its_share_of_the_memory() -> None:
    machine = default_ram_budget(1, {})
    assert default_ram_budget(2, {"SLURM_MEM_PER_NODE": "800"}) == 50 * 2**20
    assert default_ram_budget(1, {"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "4"}) == 50 * 2**20
    assert default_ram_budget(1, {"SLURM_MEM_PER_NODE": "0"}) == machine  # --mem=0: all that the node has
