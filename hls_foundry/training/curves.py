"""Draw what fine-tuning logged: loss, validation IoU and learning rate over optimiser steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def curves_png(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of three panels from the records of metrics.jsonl (training records have `loss`, validation records `miou`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record and "learning_rate" in record]
    checks = [record for record in records if "miou" in record]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, rate = figure.subplots(1, 3)
    loss.plot([r["step"] for r in steps], [r["loss"] for r in steps], lw=0.6, alpha=0.4, color="tab:blue")
    smooth = _smoothed([float(r["loss"]) for r in steps])
    loss.plot([r["step"] for r in steps], smooth, lw=1.6, color="tab:blue")
    loss.set(title="Training loss", xlabel="optimiser step")
    for key, label in (("miou", "mean IoU"), ("iou", "IoU of class 1")):
        score.plot([r["step"] for r in checks], [r.get(key) for r in checks], marker="o", ms=3, label=label)
    score.set(title="Validation", xlabel="optimiser step", ylim=(0, 1))
    if checks:
        score.legend()
    rate.plot([r["step"] for r in steps], [r["learning_rate"] for r in steps], color="tab:gray")
    rate.set(title="Learning rate", xlabel="optimiser step")
    for axes in (loss, score, rate):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, average = [], 0.0
    for index, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**index))
    return out
