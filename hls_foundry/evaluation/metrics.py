"""Scores of a mask against its label: one confusion matrix (torchmetrics), and everything else derived from it.

Conventions, where a quotient is 0/0: a class that is neither in the labels nor in the prediction has no score (NaN) and does
not count in the mean IoU; a class that is in only one of the two scores 0. Pixels whose label is ignored (−1) and pixels
without image data (predicted −1) are not scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -1


@dataclass(frozen=True)
class Scores:
    """`iou`, `f1`, `precision` and `recall` are those of class 1 (0–1, or NaN where class 1 is nowhere); `miou` is the mean IoU.

    `confusion[i][j]` counts the pixels of class i that were predicted as class j. The `class_…` pairs hold class 0 and class 1.
    """

    iou: float
    miou: float
    f1: float
    precision: float
    recall: float
    accuracy: float
    confusion: tuple[tuple[int, int], tuple[int, int]]
    class_iou: tuple[float, float]
    class_f1: tuple[float, float]
    class_precision: tuple[float, float]
    class_recall: tuple[float, float]

    @classmethod
    def from_confusion(cls, confusion: npt.ArrayLike) -> Scores:
        """Derive all scores from a 2×2 matrix of pixel counts (rows: label, columns: prediction)."""
        matrix = np.asarray(confusion, dtype=np.int64)
        if matrix.shape != (2, 2):
            raise ValueError(f"a confusion matrix of two classes is 2×2, not {matrix.shape}")
        hits = np.diag(matrix)
        labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        union = labelled + predicted - hits
        iou = _pair(hits, union, union)
        return cls(
            iou=iou[1],
            miou=float(np.nanmean(iou)) if union.any() else math.nan,
            f1=_pair(2 * hits, labelled + predicted, union)[1],
            precision=_pair(hits, predicted, union)[1],
            recall=_pair(hits, labelled, union)[1],
            accuracy=float(hits.sum() / matrix.sum()) if matrix.any() else math.nan,
            confusion=((int(matrix[0, 0]), int(matrix[0, 1])), (int(matrix[1, 0]), int(matrix[1, 1]))),
            class_iou=iou,
            class_f1=_pair(2 * hits, labelled + predicted, union),
            class_precision=_pair(hits, predicted, union),
            class_recall=_pair(hits, labelled, union),
        )

    def as_dict(self) -> dict[str, Any]:
        """The scores for JSON: NaN, which JSON does not know, becomes None."""
        values: dict[str, Any] = {name: _plain(getattr(self, name)) for name in ("iou", "miou", "f1", "precision", "recall", "accuracy")}
        values["confusion"] = [list(row) for row in self.confusion]
        for name in ("class_iou", "class_f1", "class_precision", "class_recall"):
            values[name] = [_plain(value) for value in getattr(self, name)]
        return values


class ConfusionCounter:
    """Accumulates torchmetrics' MulticlassConfusionMatrix over chips of any size."""

    def __init__(self) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # late: its import takes seconds

        self._metric = MulticlassConfusionMatrix(num_classes=2, ignore_index=IGNORED, validate_args=False)

    def add(self, predicted: npt.NDArray[np.int16], label: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
        """Count one chip and return its own 2×2 matrix. Both (H, W) with 0, 1 and −1 = not scored."""
        import torch

        if predicted.shape != label.shape:
            raise ValueError(f"the prediction has {predicted.shape} pixels and the label {label.shape}")
        scored = np.where(predicted == IGNORED, IGNORED, label)
        matrix = self._metric(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(scored.astype(np.int64)))
        counted: npt.NDArray[np.int64] = matrix.numpy().astype(np.int64)
        return counted

    def scores(self) -> Scores:
        """Scores over all pixels counted so far."""
        return Scores.from_confusion(self._metric.compute().numpy())


def _pair(numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64], union: npt.NDArray[np.int64]) -> tuple[float, float]:
    """numerator / denominator of both classes; 0/0 is NaN where the class is nowhere, else 0 (torchmetrics' zero_division=0)."""
    values = [math.nan if u == 0 else float(n / d) if d else 0.0 for n, d, u in zip(numerator, denominator, union, strict=True)]
    return values[0], values[1]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
