"""Training samples: which chips make up batch k, and how each is cropped and turned, as pure functions of seed, epoch and chip.

Nothing here depends on the number of processes or on what was drawn before, so a resumed or a distributed training sees the
very samples that an uninterrupted one in a single process would.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from rasterio.windows import Window
from torch import Tensor

from hls_foundry.chips.reader import ChipReader, read_mask
from hls_foundry.errors import ChipError, Preempted, SplitError, TrainingError
from hls_foundry.training.request import TrainingRequest

log = logging.getLogger(__name__)

IGNORE = -1
"""The label of pixels that no loss and no score counts."""

ORDER, AUGMENTATION = 0, 1
"""First words of the random streams, so that the order of an epoch and the crops of a chip never share numbers."""


@dataclass(frozen=True)
class Chip:
    """A chip in memory: normalised bands float32 (6, H, W) with 0 where there is no data, labels int8 (H, W) with −1 there."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int8]

    @property
    def nbytes(self) -> int:
        """Bytes of image and label together."""
        return self.image.nbytes + self.label.nbytes


@dataclass(frozen=True)
class Batch:
    """`images` float32 (B, 6, S, S), `labels` int64 (B, S, S), and for models that take coordinates (B, 1, 2) and (B, 2)."""

    images: Tensor
    labels: Tensor
    temporal: Tensor | None = None
    location: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        temporal = None if self.temporal is None else self.temporal.to(device)
        location = None if self.location is None else self.location.to(device)
        return Batch(self.images.to(device), self.labels.to(device), temporal, location)


@dataclass(frozen=True)
class StepData:
    """One process's share of one optimiser step, an entry an accumulation step; `chips` names the whole global batch."""

    batches: list[Batch]
    chips: list[str]


class SplitChips:
    """The files of one split's chips. Raises SplitError where the split is empty."""

    def __init__(self, request: TrainingRequest, split: str) -> None:
        table = request.table()
        rows = table[table["split"] == split]
        if rows.empty:
            raise SplitError(f"no {split} chips in {request.splits_table}: give more chips or a larger data.{split}_share")
        self.names: list[str] = rows["chip"].tolist()
        self.paths = [(request.root / image, request.root / mask) for image, mask in zip(rows["image"], rows["mask"], strict=True)]
        self.request = request
        self.split = split

    def __len__(self) -> int:
        return len(self.names)

    def reader(self, index: int) -> ChipReader:
        data = self.request.data
        return ChipReader(self.paths[index][0], bands=data.bands, scale=data.scale, nodata=data.nodata)


class ChipDataset(SplitChips):
    """The chips to train on. Those that fit `ram_budget` (bytes, for this process) are read once, of the others each crop from disk.

    Raises SplitError where the split is empty or without class 1, ChipError for what cannot be read, Preempted when `asked_to_stop`
    gives a signal's number while chips are read.
    """

    def __init__(self, request: TrainingRequest, split: str, ram_budget: int, asked_to_stop: Callable[[], int] = lambda: 0) -> None:
        super().__init__(request, split)
        self._mean = np.asarray(request.task.mean, np.float32)[:, None, None]
        self._inverse_std = (1.0 / np.asarray(request.task.std, np.float64)).astype(np.float32)[:, None, None]
        self._held: list[Chip | None] = [None] * len(self)
        self.coordinates = self._read_coordinates() if request.model.coordinates else None
        self._fill(ram_budget, asked_to_stop)

    def read(self, index: int, window: Window | None = None) -> Chip:
        """A chip, or a window of it, from disk."""
        with self.reader(index) as reader:
            pixels = reader.read(window)
            height, width = reader.grid.height, reader.grid.width
        label = read_mask(self.paths[index][1]).astype(np.int8)
        if label.shape != (height, width):
            size = f"{width}×{height} pixels and its mask {label.shape[1]}×{label.shape[0]}"
            raise ChipError(f"chip {self.names[index]} has {size}: give the mask on the image's own grid")
        if window is not None:
            label = label[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width].copy()
        image = (pixels - self._mean) * self._inverse_std
        empty = ~np.isfinite(image).all(axis=0)
        if empty.any():
            image[:, empty] = 0.0
            label[empty] = IGNORE
        return Chip(image, label)

    def crop(self, epoch: int, index: int, size: int) -> Chip:
        """A random `size`² crop, flipped and turned by quarters; smaller chips are reflected outwards with ignored labels."""
        training = self.request.training
        rng = np.random.default_rng((training.seed, AUGMENTATION, epoch, index))
        chip = self._held[index]
        height, width = chip.label.shape if chip else self._shape(index)
        top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
        rows, columns = min(size, height), min(size, width)
        if chip is None:
            chip = self.read(index, Window(left, top, columns, rows))
            image, label = chip.image, chip.label
        else:
            image, label = chip.image[:, top : top + rows, left : left + columns], chip.label[top : top + rows, left : left + columns]
        if rows < size or columns < size:
            above, before = (size - rows) // 2, (size - columns) // 2
            around = ((above, size - rows - above), (before, size - columns - before))
            image = np.pad(image, ((0, 0), *around), mode="reflect")
            label = np.pad(label, around, constant_values=IGNORE)
        flip_rows, flip_columns, turns = rng.integers(2), rng.integers(2), int(rng.integers(4))
        if training.flips and flip_rows:
            image, label = image[:, ::-1], label[::-1]
        if training.flips and flip_columns:
            image, label = image[:, :, ::-1], label[:, ::-1]
        if training.rotations and turns:
            image, label = np.rot90(image, turns, axes=(1, 2)), np.rot90(label, turns)
        return Chip(image, label)

    def batch(self, draws: list[tuple[int, int]]) -> Batch:
        """The (epoch, chip index) draws as tensors."""
        size = self.request.training.crop_size
        images = np.empty((len(draws), 6, size, size), np.float32)
        labels = np.empty((len(draws), size, size), np.int64)
        for slot, (epoch, index) in enumerate(draws):
            sample = self.crop(epoch, index, size)
            images[slot], labels[slot] = sample.image, sample.label
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
        if self.coordinates is None:
            return Batch(*tensors)
        when, where = (self.coordinates[kind][[index for _, index in draws]] for kind in (0, 1))
        return Batch(*tensors, torch.from_numpy(when[:, None]), torch.from_numpy(where))

    def _fill(self, budget: int, asked_to_stop: Callable[[], int]) -> None:
        left, index = budget, 0
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            # In slices, so that a budget that is used up stops the reading.
            while index < len(self) and left > 0:
                if signal := asked_to_stop():
                    raise Preempted(f"stopped by signal {signal} while reading chips: start again to go on", signal)
                for chip in pool.map(self.read, range(index, min(index + 16, len(self)))):
                    left -= chip.nbytes
                    if left < 0:
                        break
                    self._held[index] = chip
                    index += 1
        if index < len(self):
            text = "%s: %d of %d chips in memory (%.1f GB), crops of the others are read from disk"
            log.info(text, self.split, index, len(self), budget / 1e9)
        elif not any((chip.label == 1).any() for chip in self._held if chip):
            raise SplitError(f"no {self.split} chip has a pixel of class '{self.request.task.classes[1]}': check the masks and the splits")

    @lru_cache(maxsize=65536)  # noqa: B019 (one dataset lives as long as its training)
    def _shape(self, index: int) -> tuple[int, int]:
        with self.reader(index) as reader:
            return reader.grid.height, reader.grid.width

    def _read_coordinates(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Year and day of year, latitude and longitude of each chip: two (chips, 2)."""
        when, where = np.empty((len(self), 2), np.float32), np.empty((len(self), 2), np.float32)
        for index, name in enumerate(self.names):
            with self.reader(index) as reader:
                if reader.acquired is None or reader.location is None:
                    what = "acquisition date" if reader.acquired is None else "location"
                    raise TrainingError(
                        f"chip {name} has no {what}, which model.coordinates needs: name files as HLS does, or set model.coordinates=false"
                    )
                when[index] = reader.acquired.year, reader.acquired.timetuple().tm_yday
                where[index] = reader.location
        return when, where


class Sampler:
    """Which (epoch, chip index) make up each step. Epochs follow each other without a gap, so every batch is full."""

    def __init__(self, chips: int, batch_size: int, seed: int) -> None:
        self.chips, self.batch_size, self.seed = chips, batch_size, seed

    @lru_cache(maxsize=4)  # noqa: B019
    def order(self, epoch: int) -> list[int]:
        """The chips' positions in the order of `epoch` (from 0), the same for the same seed."""
        permutation: list[int] = np.random.default_rng((self.seed, ORDER, epoch)).permutation(self.chips).tolist()
        return permutation

    def draws(self, step: int) -> list[tuple[int, int]]:
        """The global batch of `step` (from 0)."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [(p // self.chips, self.order(p // self.chips)[p % self.chips]) for p in positions]


class Batches:
    """Iterates over one process's share of steps `start` to `stop`, preparing the next step in a thread while this one computes."""

    def __init__(self, dataset: ChipDataset, rank: int, processes: int) -> None:
        training = dataset.request.training
        self.dataset, self.rank, self.processes, self.accumulation = dataset, rank, processes, training.accumulation
        self.sampler = Sampler(len(dataset), training.batch_size, training.seed)
        # One thread, and numpy only: torch operations in a second thread would start a second team of OpenMP threads.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def step(self, step: int) -> StepData:
        """This process's share of the global batch of `step` (from 0)."""
        draws = self.sampler.draws(step)
        share = len(draws) // (self.processes * self.accumulation)
        first = [(a * self.processes + self.rank) * share for a in range(self.accumulation)]
        return StepData([self.dataset.batch(draws[f : f + share]) for f in first], [self.dataset.names[index] for _, index in draws])

    def steps(self, start: int, stop: int) -> Iterator[StepData]:
        """The shares of `start` to `stop` − 1, the next one prepared while one is in use."""
        upcoming: Future[StepData] | None = None
        for step in range(start, stop):
            data = upcoming.result() if upcoming else self.step(step)
            upcoming = self._pool.submit(self.step, step + 1) if step + 1 < stop else None
            yield data


def default_ram_budget(local_processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """An eighth of the machine's memory, or of what a Slurm job has of it, shared by the processes on it (bytes)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    per_node, per_cpu = (int(environment.get(f"SLURM_MEM_PER_{what}") or 0) << 20 for what in ("NODE", "CPU"))  # given in MiB
    granted = per_node or per_cpu * int(environment.get("SLURM_CPUS_ON_NODE") or 1)
    return (min(memory, granted) if granted else memory) // 8 // local_processes
