"""Validation while training: whole chips through the tiled predictor that serving uses, scored by one confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hls_foundry.chips.reader import read_mask
from hls_foundry.chips.scene import Scene
from hls_foundry.evaluation.metrics import ConfusionCounter, Scores
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.predictor import Predictor
from hls_foundry.training.data import SplitChips
from hls_foundry.training.losses import SegmentationLoss
from hls_foundry.training.processes import Processes
from hls_foundry.training.request import TrainingRequest

if TYPE_CHECKING:
    import numpy.typing as npt


class Stopped(Exception):
    """A signal asked to stop in the middle of a validation, which is then done again after resuming."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Validator:
    """The validation chips of one process (every `processes`-th), kept in memory while they fit `ram_budget` bytes."""

    def __init__(self, request: TrainingRequest, processes: Processes, ram_budget: int) -> None:
        self.request, self.processes = request, processes
        self.precision = "fp32" if processes.precision == "fp32" else "auto"
        self.files = SplitChips(request, "validation")
        self.mine = range(processes.rank, len(self.files), processes.count)
        self.rounds = -(-len(self.files) // processes.count)
        self._left = ram_budget
        self._held: dict[int, tuple[Scene, npt.NDArray[np.int16]]] = {}

    def __call__(
        self, model: nn.Module, loss: SegmentationLoss, asked_to_stop: Callable[[], int], heard: Callable[[], int] = lambda: 0
    ) -> dict[str, Any]:
        """Scores of `model` (a Segmenter, whose training mode is left as it was) over all validation chips.

        `loss` is the mean of the chips' training loss. `asked_to_stop` gives a signal's number, or 0, the same
        on all processes; Stopped is raised for it. `heard` is what this process alone knows of such a signal: it leaves its chip at the
        next row of tiles, to meet the others.
        """
        started = time.monotonic()
        request = self.request
        tiles = request.inference
        predictor = Predictor(
            model, request.task.mean, request.task.std, tiles.tile, tiles.overlap, tiles.batch_size,
            precision=self.precision, coordinates=request.model.coordinates,
        )  # fmt: skip
        totals = np.zeros(6, np.float64)  # the confusion matrix, the sum of losses, chips with a valid pixel
        counter = ConfusionCounter()
        for turn in range(self.rounds + 1):  # the last time only to ask: a chip that was left must not count
            if signal := asked_to_stop():
                raise Stopped(signal)
            if turn < len(self.mine):
                scene, label = self._chip(self.mine[turn])
                if (probabilities := _probabilities(predictor, scene, heard)) is None:
                    continue
                totals[:4] += counter.add(mask_from_probabilities(probabilities), label).ravel()
                totals[4:] += _loss(loss, probabilities, label)
        summed = self.processes.sum(torch.from_numpy(totals)).cpu().numpy()
        scores = Scores.from_confusion(summed[:4].round().reshape(2, 2)).as_dict()
        return {**scores, "loss": float(summed[4] / max(summed[5], 1.0)), "seconds": round(time.monotonic() - started, 3)}

    def _chip(self, index: int) -> tuple[Scene, npt.NDArray[np.int16]]:
        if index in self._held:
            return self._held[index]
        with self.files.reader(index) as reader:
            scene = reader.scene()
        chip = scene, read_mask(self.files.paths[index][1])
        self._left -= scene.pixels.nbytes + chip[1].nbytes
        if self._left >= 0:
            self._held[index] = chip
        return chip


def _probabilities(predictor: Predictor, scene: Scene, heard: Callable[[], int]) -> npt.NDArray[np.float32] | None:
    """What `predictor.probabilities` gives, or None where a signal came before the last row of tiles."""
    height, width = scene.pixels.shape[1:]
    probabilities = np.empty((predictor.classes, height, width), np.float32)
    source = torch.from_numpy(np.require(scene.pixels, np.float32, ["C", "W"]))
    strips = predictor.strips(lambda a, b: source[:, a:b], height, width, acquired=scene.acquired, location=scene.location)
    for row, strip in strips:
        probabilities[:, row : row + strip.shape[1]] = strip.numpy()
        if row + strip.shape[1] < height and heard():
            return None
    return probabilities


def _loss(loss: SegmentationLoss, probabilities: npt.NDArray[np.float32], label: npt.NDArray[np.int16]) -> tuple[float, float]:
    """The chip's loss and 1, or zeros where no pixel is valid."""
    valid = np.isfinite(probabilities[0])
    labels = torch.from_numpy(np.where(valid, label, -1).astype(np.int64))[None].to(loss.class_weights.device)
    counts = loss.counts(labels)
    if not counts[1]:
        return 0.0, 0.0
    # The logarithm of a softmax is a logit of it.
    logits = torch.from_numpy(probabilities).nan_to_num(0.5).clamp_min(1e-12).log()[None].to(labels.device)
    with torch.inference_mode():
        return float(loss(logits, labels, counts)), 1.0
