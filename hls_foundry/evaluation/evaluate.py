"""Measures a predictor on whole test chips, beside the spectral index, chip by chip."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from hls_foundry.chips.reader import ChipReader, read_mask
from hls_foundry.chips.scene import Scene
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import ChipError, SplitError
from hls_foundry.evaluation.baseline import SpectralIndex
from hls_foundry.evaluation.metrics import ConfusionCounter, Scores

if TYPE_CHECKING:
    from datetime import date

    from matplotlib.figure import Figure

    from hls_foundry.chips.splits import Splits

THUMBNAIL = 512  # longest side (pixels) of the examples kept for drawing
Progress = Callable[[int, int], None]
"""Called with chips done and chips in all."""


class Predicts(Protocol):
    """What is evaluated: inference.predictor.Predictor, or anything with its `mask`."""

    def mask(
        self,
        pixels: npt.NDArray[np.float32],
        threshold: float | None = None,
        acquired: date | None = None,
        location: tuple[float, float] | None = None,
    ) -> npt.NDArray[np.int16]:
        """float32 (6, H, W) reflectance → int16 (H, W): the class of each pixel, −1 where there is no data."""


@dataclass(frozen=True)
class Baseline:
    """The spectral index on the same test chips, its threshold chosen on the training chips."""

    name: str
    threshold: float
    scores: Scores


@dataclass(frozen=True)
class Example:
    """One test chip to look at: images uint8 (h, w, 3), masks int8 (h, w) with −1 = not scored; at most 512 pixels a side."""

    kind: Literal["best", "median", "worst"]
    chip: str
    iou: float
    true_colour: npt.NDArray[np.uint8]
    false_colour: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int8]
    prediction: npt.NDArray[np.int8]


@dataclass(frozen=True)
class EvaluationReport:
    """Scores on the test chips together, the baseline's on the same, and a row for each chip.

    `chips` has the columns chip, tile, date, iou, f1, precision, recall, accuracy, tp, fp, fn, tn (pixels), positive_share,
    predicted_share (of the scored pixels), labelled_ha, predicted_ha (NaN without georeferencing), baseline_iou, seconds.
    A chip without class 1 in label and prediction has iou NaN; one with false alarms only has iou 0.
    """

    task: str
    title: str
    classes: tuple[str, str]
    test: Scores
    baseline: Baseline
    chips: pd.DataFrame
    examples: tuple[Example, ...]
    seconds: float

    @property
    def confusion(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels: rows are the labels, columns the predictions."""
        return self.test.confusion

    def summary(self) -> dict[str, Any]:
        """The `metrics` of run.py's JSON summary."""
        scores = self.test.as_dict()
        test = {name: scores[name] for name in ("miou", "iou", "f1", "precision", "recall", "accuracy")}
        return {"test": test, "baseline": {"name": self.baseline.name, "iou": self.baseline.scores.as_dict()["iou"]}}

    def plot(self) -> Figure:
        """The confusion matrix and the distribution of the chips' IoU against the baseline's."""
        from hls_foundry.evaluation.plots import overview

        return overview(self)

    def to_html(self) -> str:
        """One self-contained page: scores, confusion matrix, best, median and worst chips, and the table of chips."""
        from hls_foundry.evaluation.plots import page

        return page(self)


def evaluate(
    predictor: Predicts, splits: Splits, data: DataConfig, task: TaskConfig, *, progress: Progress | None = None
) -> EvaluationReport:
    """Evaluate on the test chips; the index baseline is fitted on the training chips. `progress` counts both.

    Raises SplitError where the test split is empty or the training
    split cannot teach the baseline, ChipError where a chip cannot be read any more.
    """
    started = time.perf_counter()
    total = len(splits.table[splits.table["split"].isin(["train", "test"])])
    index = fit_index(splits, data, task, progress=(lambda done, _: progress(done, total)) if progress else None)
    counter, baseline_counter = ConfusionCounter(), ConfusionCounter()
    rows: list[dict[str, Any]] = []
    test = _rows(splits, "test")
    for number, row in enumerate(test.to_dict("records"), 1):
        scene, label = _read(splits.root, row, data)
        began = time.perf_counter()
        prediction = _predict(predictor, scene)
        seconds = time.perf_counter() - began
        chip = Scores.from_confusion(counter.add(prediction, label))
        baseline = Scores.from_confusion(baseline_counter.add(index.predict(scene.pixels), label))
        rows.append(_chip_row(row, chip, baseline.iou, seconds))
        if progress:
            progress(total - len(test) + number, total)
    chips = pd.DataFrame(rows)
    return EvaluationReport(
        task=task.name,
        title=task.title,
        classes=task.classes,
        test=counter.scores(),
        baseline=Baseline(index.name, index.threshold, baseline_counter.scores()),
        chips=chips,
        examples=tuple(_examples(predictor, chips, test, splits.root, data)),
        seconds=time.perf_counter() - started,
    )


def fit_index(splits: Splits, data: DataConfig, task: TaskConfig, *, progress: Progress | None = None) -> SpectralIndex:
    """The task's index with the threshold that is best on the training chips. Raises SplitError as SpectralIndex.fit does."""
    train = _rows(splits, "train")

    def images() -> Iterator[npt.NDArray[np.float32]]:
        for number, row in enumerate(train.to_dict("records"), 1):
            with ChipReader(splits.root / row["image"], bands=data.bands, scale=data.scale, nodata=data.nodata) as reader:
                yield reader.read()
            if progress:
                progress(number, len(train))

    masks = (read_mask(splits.root / mask) for mask in train["mask"])
    return SpectralIndex.fit(images(), masks, task.index)


def measure(predictor: Predicts, splits: Splits, data: DataConfig, *, progress: Progress | None = None) -> Scores:
    """Only the scores on the test chips: what the version now in production is compared by (promotion.decide)."""
    counter = ConfusionCounter()
    test = _rows(splits, "test")
    for number, row in enumerate(test.to_dict("records"), 1):
        scene, label = _read(splits.root, row, data)
        counter.add(_predict(predictor, scene), label)
        if progress:
            progress(number, len(test))
    return counter.scores()


def _rows(splits: Splits, name: Literal["train", "test"]) -> pd.DataFrame:
    rows: pd.DataFrame = splits.table[splits.table["split"] == name]
    if rows.empty:
        raise SplitError(f"the {name} split has no chip: raise data.{'test_share' if name == 'test' else 'source'} or add chips to it")
    return rows


def _read(root: Path, row: Mapping[Any, Any], data: DataConfig) -> tuple[Scene, npt.NDArray[np.int16]]:
    with ChipReader(root / row["image"], bands=data.bands, scale=data.scale, nodata=data.nodata) as reader:
        scene = reader.scene()
    label = read_mask(root / row["mask"])
    if label.shape != scene.pixels.shape[1:]:
        raise ChipError(f"{row['image']} and {row['mask']} differ in size: validate the data again")
    return scene, label


def _predict(predictor: Predicts, scene: Scene) -> npt.NDArray[np.int16]:
    return predictor.mask(scene.pixels, acquired=scene.acquired, location=scene.location)


def _chip_row(row: Mapping[Any, Any], scores: Scores, baseline_iou: float, seconds: float) -> dict[str, Any]:
    (tn, fp), (fn, tp) = scores.confusion
    scored = max(tn + fp + fn + tp, 1)
    resolution = float(row.get("resolution_m", math.nan))
    hectares = resolution**2 / 10_000 if resolution > 0 else math.nan
    return {
        "chip": row["chip"],
        "tile": row.get("tile", ""),
        "date": row.get("date", ""),
        **{name: getattr(scores, name) for name in ("iou", "f1", "precision", "recall", "accuracy")},
        "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "positive_share": (tp + fn) / scored,
        "predicted_share": (tp + fp) / scored,
        "labelled_ha": (tp + fn) * hectares,
        "predicted_ha": (tp + fp) * hectares,
        "baseline_iou": baseline_iou,
        "seconds": seconds,
    }  # fmt: skip


def _examples(predictor: Predicts, chips: pd.DataFrame, test: pd.DataFrame, root: Path, data: DataConfig) -> Iterator[Example]:
    """The best, the median and the worst chip by IoU; predicted again, so that the pixels of all chips need not be held."""
    ranked = chips.dropna(subset=["iou"]).sort_values("iou", ascending=False, kind="stable")
    # A chip without class 1 scores 0 by one false pixel: it is shown only where there is no other.
    with_class = ranked[ranked["tp"] + ranked["fn"] > 0]
    ranked = with_class if len(with_class) else ranked if len(ranked) else chips
    last = len(ranked) - 1
    positions: dict[Literal["best", "median", "worst"], int] = {"best": 0}
    if last > 1:
        positions["median"] = last // 2
    if last > 0:
        positions["worst"] = last
    for kind, position in positions.items():
        chosen = ranked.iloc[position]
        row = test[test["chip"] == chosen["chip"]].iloc[0].to_dict()
        scene, label = _read(root, row, data)
        prediction = _predict(predictor, scene)
        step = math.ceil(max(label.shape) / THUMBNAIL)
        small = scene.pixels[:, ::step, ::step]
        yield Example(
            kind,
            str(chosen["chip"]),
            float(chosen["iou"]),
            composite(small, (2, 1, 0)),
            composite(small, (5, 3, 2)),
            np.where(prediction == -1, -1, label)[::step, ::step].astype(np.int8),
            prediction[::step, ::step].astype(np.int8),
        )


def composite(pixels: npt.NDArray[np.float32], bands: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """uint8 (h, w, 3) of three of the six bands: one stretch for all three, from their 2 % to their 98 % quantile; no data is black."""
    chosen = pixels[list(bands)]
    finite = chosen[np.isfinite(chosen)]
    low, high = np.quantile(finite, (0.02, 0.98)) if finite.size else (0.0, 1.0)
    # 0.05: a chip of still water has no contrast worth stretching to black and white.
    stretched = np.clip((chosen - low) / max(high - low, 0.05), 0, 1)
    image: npt.NDArray[np.uint8] = (np.nan_to_num(stretched) * 255).astype(np.uint8).transpose(1, 2, 0)
    return image
