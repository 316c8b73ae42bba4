"""The quality gate and the comparison with production, each with its reason in words."""

from __future__ import annotations

import pytest

from hls_foundry.config import PromotionConfig
from hls_foundry.evaluation.metrics import Scores
from hls_foundry.evaluation.promotion import decide

GATE = PromotionConfig(min_iou=0.6, min_gain_over_baseline=0.1)


def with_iou(percent: int) -> Scores:
    """Scores whose IoU of class 1 is exactly percent / 100."""
    return Scores.from_confusion([[1000, 0], [100 - percent, percent]])


@pytest.mark.parametrize(
    ("test", "baseline", "production", "promote", "words"),
    [
        (80, 50, None, True, "no version was in production"),
        (80, 50, 75, True, "better than the version in production (0.750"),
        (80, 50, 80, False, "not better than the version in production (0.800"),
        (80, 50, 85, False, "not better than the version in production (0.850"),
        (59, 30, None, False, "below the gate of 0.600"),
        (60, 30, None, True, "passes the gate"),
        (65, 60, None, False, "at least 0.100 above"),
        (60, 50, None, True, "0.100 above"),
        (65, 70, None, False, "0.050 below the NBR baseline's 0.700"),
    ],
)
def test_decision_and_its_reason(test: int, baseline: int, production: int | None, promote: bool, words: str) -> None:
    before = None if production is None else with_iou(production)
    decision = decide(with_iou(test), with_iou(baseline), before, GATE, baseline_name="NBR")
    assert decision.promote is promote
    assert words in decision.reason
    assert decision.reason.startswith("promoted" if promote else "not promoted")
    assert "\n" not in decision.reason


def test_test_chips_without_a_positive_promote_nothing() -> None:
    empty = Scores.from_confusion([[1000, 0], [0, 0]])
    decision = decide(empty, empty, None, PromotionConfig(min_iou=0.0, min_gain_over_baseline=-1.0))
    assert not decision.promote
    assert "no test chip has a pixel of class 1" in decision.reason


def test_production_that_cannot_be_scored_is_replaced() -> None:
    decision = decide(with_iou(80), with_iou(50), Scores.from_confusion([[1000, 0], [0, 0]]), GATE)
    assert decision.promote
