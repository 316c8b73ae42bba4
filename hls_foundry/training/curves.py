"""Draws what fine-tuning logged: loss, validation scores and learning rate over optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hls_foundry.report import Picture, Section, facts, note
from hls_foundry.report.picture import BLUE, GREEN, GREY, VERMILLION, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]
MAX_POINTS = 2000  # of one line: more cannot be seen


def history_sections(records: Records, run: Mapping[str, Any]) -> list[Section]:
    """The curves of the records of metrics.jsonl, and the facts `run`."""
    if not records:
        return [Section("Fine-tuning", note("Nothing was logged: no step was taken."), facts(run))]
    return [Section("Fine-tuning", curves(records), facts({name.replace("_", " "): value for name, value in run.items()}))]


def curves(records: Records) -> Picture:
    """Three panels; training records have `loss`, validation records `miou` (None where no class could be scored)."""
    from matplotlib.figure import Figure

    steps = [record for record in records if "learning_rate" in record and record.get("loss") is not None]
    checks = [record for record in records if "miou" in record]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    _loss(loss, steps, checks)
    best = _scores(score, checks)
    thin = _thinned(steps)
    rate.plot([r["step"] for r in thin], [r["learning_rate"] for r in thin], color=GREY)
    rate.set_title("Learning rate", loc="left", fontsize=10)
    rate.yaxis.set_major_formatter("{x:g}")
    last = max((record["step"] for record in records if "step" in record), default=1)
    for axes in (loss, score, rate):
        axes.set_xlim(0, last * 1.03)
        axes.grid(color="#c9d1d9", linewidth=0.6)
        axes.set_xlabel("optimiser step", fontsize=9)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return drawn(figure, "curves", _alternative(steps, best))


def _loss(axes: Axes, steps: Records, checks: Records) -> None:
    smooth = _smoothed([float(r["loss"]) for r in steps])
    thin = _thinned(list(zip([r["step"] for r in steps], [r["loss"] for r in steps], smooth, strict=True)))
    axes.plot([row[0] for row in thin], [row[1] for row in thin], lw=0.6, alpha=0.4, color=BLUE)
    axes.plot([row[0] for row in thin], [row[2] for row in thin], lw=1.8, color=BLUE, label="training, smoothed")
    measured = [r for r in checks if r.get("loss") is not None]
    if measured:
        axes.plot([r["step"] for r in measured], [r["loss"] for r in measured], "s--", ms=3.5, lw=1.2, color=VERMILLION, label="validation")
    axes.set_title("Loss", loc="left", fontsize=10)
    if steps or measured:
        axes.legend(fontsize=8, frameon=False)


def _scores(axes: Axes, checks: Records) -> Mapping[str, Any] | None:
    """Returns the record with the best mean IoU, which is the one that is kept."""
    for key, label, colour, style in (("miou", "mean IoU", GREEN, "o-"), ("iou", "IoU of class 1", BLUE, "s--")):
        scored = [r for r in checks if r.get(key) is not None]
        axes.plot([r["step"] for r in scored], [r[key] for r in scored], style, ms=3.5, lw=1.4, color=colour, label=label)
    axes.set(ylim=(0, 1.02))
    axes.set_title("Validation", loc="left", fontsize=10)
    scored = [r for r in checks if r.get("miou") is not None]
    if not scored:
        return None
    best = max(scored, key=lambda r: float(r["miou"]))
    axes.plot(best["step"], best["miou"], "o", ms=10, mfc="none", mec=VERMILLION, mew=1.6, label=f"kept: step {best['step']}")
    axes.legend(fontsize=8, frameon=False, loc="best")
    return best


def _alternative(steps: Records, best: Mapping[str, Any] | None) -> str:
    words = "Loss, validation scores and learning rate over optimiser steps"
    if steps:
        words += f"; training loss from {float(steps[0]['loss']):.3f} to {float(steps[-1]['loss']):.3f} in {steps[-1]['step']} steps"
    if best:
        words += f"; best mean IoU {float(best['miou']):.3f} at step {best['step']}"
    return words


def _thinned(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, -(-len(rows) // MAX_POINTS))]


def _smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, average = [], 0.0
    for index, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**index))
    return out
