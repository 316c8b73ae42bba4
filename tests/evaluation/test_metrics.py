"""Scores agree with torchmetrics' own, and their conventions hold at 0/0."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hls_foundry.evaluation.metrics import ConfusionCounter, Scores


@pytest.fixture(scope="module")
def noisy() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    chips = []
    for height, width in ((64, 64), (70, 91)):
        label = rng.choice([-1, 0, 1], size=(height, width), p=[0.1, 0.6, 0.3]).astype(np.int16)
        predicted = np.where(rng.random(label.shape) < 0.8, np.maximum(label, 0), rng.integers(0, 2, label.shape)).astype(np.int16)
        chips.append((predicted, label))
    return chips


def test_scores_equal_those_of_torchmetrics(noisy: list[tuple[np.ndarray, np.ndarray]]) -> None:
    import torch
    from torchmetrics.functional import classification as reference

    counter = ConfusionCounter()
    for predicted, label in noisy:
        counter.add(predicted, label)
    scores = counter.scores()
    predicted, label = (torch.from_numpy(np.concatenate([chip[i].ravel() for chip in noisy]).astype(np.int64)) for i in (0, 1))
    settings = {"num_classes": 2, "ignore_index": -1, "average": "none"}
    for mine, theirs in (
        (scores.class_iou, reference.multiclass_jaccard_index),
        (scores.class_f1, reference.multiclass_f1_score),
        (scores.class_precision, reference.multiclass_precision),
        (scores.class_recall, reference.multiclass_recall),
    ):
        assert mine == pytest.approx(theirs(predicted, label, **settings).tolist(), abs=1e-6)
    assert scores.accuracy == pytest.approx(
        float(reference.multiclass_accuracy(predicted, label, 2, average="micro", ignore_index=-1)), abs=1e-6
    )
    assert (scores.iou, scores.f1, scores.precision, scores.recall) == (
        scores.class_iou[1],
        scores.class_f1[1],
        scores.class_precision[1],
        scores.class_recall[1],
    )
    assert scores.miou == pytest.approx(sum(scores.class_iou) / 2)


def test_chip_matrices_add_up_to_the_whole(noisy: list[tuple[np.ndarray, np.ndarray]]) -> None:
    counter = ConfusionCounter()
    parts = [counter.add(predicted, label) for predicted, label in noisy]
    assert np.array_equal(np.sum(parts, axis=0), counter.scores().confusion)
    assert np.sum(parts) == sum((label >= 0).sum() for _, label in noisy)


def test_pixels_without_image_data_are_not_scored() -> None:
    label = np.array([[0, 1, 1, 0]], np.int16)
    predicted = np.array([[0, 1, -1, -1]], np.int16)
    counter = ConfusionCounter()
    assert counter.add(predicted, label).tolist() == [[1, 0], [0, 1]]
    assert counter.scores().iou == 1.0


def test_rows_are_labels_and_columns_predictions() -> None:
    scores = Scores.from_confusion([[50, 10], [5, 35]])
    assert scores.precision == pytest.approx(35 / 45)
    assert scores.recall == pytest.approx(35 / 40)
    assert scores.iou == pytest.approx(35 / 50)


def test_class_that_is_nowhere_has_no_score() -> None:
    scores = Scores.from_confusion([[100, 0], [0, 0]])
    assert math.isnan(scores.iou)
    assert math.isnan(scores.f1)
    assert scores.miou == 1.0
    assert scores.accuracy == 1.0


def test_false_alarms_without_any_positive_score_zero() -> None:
    scores = Scores.from_confusion([[90, 10], [0, 0]])
    assert (scores.iou, scores.f1, scores.precision, scores.recall) == (0, 0, 0, 0)


def test_scores_become_valid_json_even_without_a_value() -> None:
    text = json.dumps(Scores.from_confusion([[0, 0], [0, 0]]).as_dict(), allow_nan=False)
    assert json.loads(text)["iou"] is None
