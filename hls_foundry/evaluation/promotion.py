"""Whether a candidate becomes the production version: the quality gate, then better than production on the same test chips."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hls_foundry.config import PromotionConfig
from hls_foundry.evaluation.metrics import Scores


@dataclass(frozen=True)
class Promotion:
    """The decision and its reason in words, for the summary, the model card and the log."""

    promote: bool
    reason: str


def decide(test: Scores, baseline: Scores, production: Scores | None, gate: PromotionConfig, *, baseline_name: str = "index") -> Promotion:
    """Decide on promotion; pure.

    `test` and `baseline` are the candidate's and the spectral index's scores on the test chips; `production` is the version
    now in production measured on the same test chips (evaluate.measure), None where there is none.
    An equal score does not promote: a change in production needs a reason.
    """
    if math.isnan(test.iou):
        return Promotion(
            False, "not promoted: no test chip has a pixel of class 1, so there is no IoU to judge by; add labelled test chips"
        )
    if test.iou < gate.min_iou:
        return Promotion(False, f"not promoted: test IoU {test.iou:.3f} is below the gate of {gate.min_iou:.3f} (promotion.min_iou)")
    index_iou = 0.0 if math.isnan(baseline.iou) else baseline.iou
    gain = test.iou - index_iou
    against_index = f"{abs(gain):.3f} {'above' if gain >= 0 else 'below'} the {baseline_name} baseline's {index_iou:.3f}"
    # 1e-9: 0.6 − 0.5 in floats is a hair under 0.1, and whoever wrote 0.1 meant it to pass.
    if gain < gate.min_gain_over_baseline - 1e-9:
        return Promotion(
            False,
            f"not promoted: test IoU {test.iou:.3f} is {against_index}, the gate asks for at least "
            f"{gate.min_gain_over_baseline:.3f} above it (promotion.min_gain_over_baseline)",
        )
    passed = f"test IoU {test.iou:.3f} passes the gate ({gate.min_iou:.3f}) and is {against_index}"
    if production is None:
        return Promotion(True, f"promoted: {passed}; no version was in production")
    if math.isnan(production.iou):
        return Promotion(True, f"promoted: {passed}; the version in production has no IoU on these test chips")
    if test.iou <= production.iou:
        return Promotion(
            False,
            f"not promoted: {passed}, but it is not better than the version in production ({production.iou:.3f} on the same test chips)",
        )
    return Promotion(True, f"promoted: {passed}; better than the version in production ({production.iou:.3f} on the same test chips)")
