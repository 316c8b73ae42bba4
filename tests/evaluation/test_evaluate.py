"""Evaluation on real files: whole test chips through a predictor, beside the index, with a table and a page."""

from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hls_foundry.chips.inventory import build_inventory
from hls_foundry.chips.reader import ChipReader, read_mask
from hls_foundry.chips.splits import Splits, split_chips
from hls_foundry.chips.synthetic import generate
from hls_foundry.config import FoundryConfig, load_config
from hls_foundry.errors import SplitError
from hls_foundry.evaluation.evaluate import EvaluationReport, composite, evaluate, fit_index, measure
from hls_foundry.evaluation.plots import BACKGROUND, FALSE_ALARM, FOUND, MISSED, UNSCORED, error_map
from hls_foundry.inference.predictor import Predictor

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class BurnRatio(nn.Module):
    """NBR below a threshold as a network: logits of both classes from normalised pixels."""

    def __init__(self, config: FoundryConfig, threshold: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.task.mean).view(1, 6, 1, 1))
        self.register_buffer("std", torch.tensor(config.task.std).view(1, 6, 1, 1))
        self.threshold = threshold

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        nir, swir2 = (pixels * self.std + self.mean)[:, [3, 5]].unbind(1)
        burnt = 40 * (self.threshold - (nir - swir2) / (nir + swir2))
        return torch.stack([-burnt, burnt], dim=1)


@pytest.fixture(scope="module")
def config() -> FoundryConfig:
    return load_config(CONFIGS, task="burn_scars")


@pytest.fixture(scope="module")
def splits(config: FoundryConfig, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    root = tmp_path_factory.mktemp("evaluation") / "chips"
    generate("burn_scars", root, chips=20, size=96, seed=2)
    return split_chips(build_inventory(root, config.task, config.data), config.data)


@pytest.fixture(scope="module")
def predictor(config: FoundryConfig, splits: Splits) -> Predictor:
    threshold = fit_index(splits, config.data, config.task).threshold
    return Predictor(BurnRatio(config, threshold), config.task.mean, config.task.std, tile=64, precision="fp32", multiple=16)


@pytest.fixture(scope="module")
def report(config: FoundryConfig, splits: Splits, predictor: Predictor) -> EvaluationReport:
    return evaluate(predictor, splits, config.data, config.task)


def test_a_network_that_computes_the_index_scores_as_the_index(report: EvaluationReport) -> None:
    assert report.test.iou == pytest.approx(report.baseline.scores.iou, abs=0.01)
    assert 0.2 < report.test.iou < 0.95
    assert report.baseline.name == "NBR"
    assert -1 < report.baseline.threshold < 1


def test_every_test_chip_has_a_row_and_rows_add_up(report: EvaluationReport, splits: Splits) -> None:
    assert report.chips["chip"].tolist() == splits.of("test")["chip"].tolist()
    totals = report.chips[["tn", "fp", "fn", "tp"]].sum().tolist()
    assert totals == [count for row in report.confusion for count in row]
    row = report.chips.sort_values("tp").iloc[-1]
    assert row["iou"] == pytest.approx(row["tp"] / (row["tp"] + row["fp"] + row["fn"]))
    assert row["labelled_ha"] == pytest.approx((row["tp"] + row["fn"]) * 0.09)  # 30 m pixels
    assert row["predicted_share"] == pytest.approx((row["tp"] + row["fp"]) / row[["tn", "fp", "fn", "tp"]].sum())


def test_scores_are_those_of_the_files_pixel_by_pixel(
    report: EvaluationReport, splits: Splits, predictor: Predictor, config: FoundryConfig
) -> None:
    true = union = 0
    for row in splits.of("test").to_dict("records"):
        with ChipReader(splits.root / row["image"]) as reader:
            found = predictor.mask(reader.read())
        label = read_mask(splits.root / row["mask"])
        scored = (label >= 0) & (found >= 0)
        true += int(((found == 1) & (label == 1) & scored).sum())
        union += int((((found == 1) | (label == 1)) & scored).sum())
    assert report.test.iou == true / union
    assert measure(predictor, splits, config.data) == report.test


def test_examples_are_the_best_the_median_and_the_worst(report: EvaluationReport) -> None:
    with_class = report.chips[report.chips["tp"] + report.chips["fn"] > 0]
    by_kind = {example.kind: example for example in report.examples}
    assert by_kind["best"].iou == with_class["iou"].max()
    assert by_kind["worst"].iou == with_class["iou"].min()
    best = by_kind["best"]
    assert best.true_colour.shape == (96, 96, 3)
    assert best.true_colour.dtype == np.uint8
    assert set(np.unique(best.prediction)) <= {-1, 0, 1}


def test_error_map_colours_each_kind_of_pixel(report: EvaluationReport) -> None:
    example = report.examples[0]
    picture = error_map(example)
    for label, prediction, colour in ((1, 1, FOUND), (0, 1, FALSE_ALARM), (1, 0, MISSED), (0, 0, BACKGROUND)):
        chosen = (example.label == label) & (example.prediction == prediction)
        assert (picture[chosen] == colour).all()
    assert (picture[example.label == -1] == UNSCORED).all()


def test_page_is_self_contained_and_names_every_chip(report: EvaluationReport) -> None:
    page = report.to_html()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert "<script" not in page
    assert all(chip in page for chip in report.chips["chip"])
    assert f"{report.test.iou:.3f}" in page
    assert len(page) < 3_000_000
    assert len(report.plot().axes) == 2


def test_summary_has_the_metrics_of_the_run(report: EvaluationReport) -> None:
    summary = report.summary()
    assert set(summary["test"]) >= {"miou", "iou", "f1", "accuracy"}
    assert summary["baseline"] == {"name": "NBR", "iou": report.baseline.scores.iou}


def test_chips_without_class_1_count_their_false_alarms_only(config: FoundryConfig, splits: Splits) -> None:
    class Silent:
        """Finds nothing; the first chip's label has nothing either."""

        def mask(self, pixels, threshold=None, acquired: date | None = None, location=None):
            return np.zeros(pixels.shape[1:], np.int16)

    report = evaluate(Silent(), splits, config.data, config.task)
    empty = report.chips["positive_share"] == 0
    assert report.chips.loc[empty, "iou"].isna().all()
    assert (report.chips.loc[~empty, "iou"] == 0).all()
    assert report.test.iou == 0
    assert all(math.isfinite(example.iou) for example in report.examples)
    assert "–" in report.to_html() or not empty.any()


def test_predictor_learns_when_and_where_a_chip_was_taken(config: FoundryConfig, splits: Splits) -> None:
    seen = []

    class Curious:
        def mask(self, pixels, threshold=None, acquired=None, location=None):
            seen.append((acquired, location))
            return np.zeros(pixels.shape[1:], np.int16)

    measure(Curious(), splits, config.data)
    assert [when.isoformat() for when, _ in seen] == splits.of("test")["date"].tolist()
    assert all(-90 <= latitude <= 90 and -180 <= longitude <= 180 for _, (latitude, longitude) in seen)


def test_progress_counts_training_and_test_chips(config: FoundryConfig, splits: Splits, predictor: Predictor) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(predictor, splits, config.data, config.task, progress=lambda done, total: calls.append((done, total)))
    total = len(splits.of("train")) + len(splits.of("test"))
    assert calls == [(number, total) for number in range(1, total + 1)]


def test_empty_test_split_is_one_line(config: FoundryConfig, splits: Splits, predictor: Predictor) -> None:
    table = splits.table[splits.table["split"] != "test"]
    with pytest.raises(SplitError, match="the test split has no chip"):
        evaluate(predictor, Splits(table, splits.root), config.data, config.task)


def test_composite_of_a_chip_without_data_is_black() -> None:
    assert (composite(np.full((6, 8, 8), np.nan, np.float32), (2, 1, 0)) == 0).all()
