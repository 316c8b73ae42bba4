"""Draws an evaluation report: figures for notebooks, and one self-contained page for the dashboard and the run's folder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hls_foundry.report import Picture, Section, folded, note, table
from hls_foundry.report import page as whole_page
from hls_foundry.report.picture import BLUE, VERMILLION, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hls_foundry.evaluation.evaluate import EvaluationReport, Example

# Colour-blind safe (Okabe & Ito 2008).
FOUND, FALSE_ALARM, MISSED, BACKGROUND, UNSCORED = (0, 158, 115), (213, 94, 0), (86, 180, 233), (235, 235, 235), (150, 150, 150)
ERRORS = {"found": FOUND, "false alarm": FALSE_ALARM, "missed": MISSED, "background": BACKGROUND, "not scored": UNSCORED}
MAX_ROWS = 500


def overview(report: EvaluationReport) -> Figure:
    """The confusion matrix (share of each label) and the chips' IoU beside the baseline's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    matrix, chips = figure.subplots(1, 2)
    _confusion(matrix, report)
    _against_baseline(chips, report)
    return figure


def examples(report: EvaluationReport) -> Figure:
    """A row for the best, the median and the worst chip: true colour, false colour, label, prediction, errors."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = max(len(report.examples), 1)
    height = 2.4 * rows + 0.6
    figure = Figure(figsize=(12, height))
    figure.subplots_adjust(left=0.042, right=0.998, top=1 - 0.27 / height, bottom=0.33 / height, wspace=0.03, hspace=0.04)
    axes = figure.subplots(rows, 5, squeeze=False)
    for number, (row, example) in enumerate(zip(axes, report.examples, strict=False)):
        pictures = (
            ("true colour", example.true_colour),
            ("SWIR 2, NIR, red", example.false_colour),
            ("label", _mask_colours(example.label)),
            ("prediction", _mask_colours(example.prediction)),
            ("error", error_map(example)),
        )
        for axis, (title, picture) in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title if number == 0 else "", fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{example.kind}: IoU {_number(example.iou)}\n{_short(example.chip)}", fontsize=8)
    handles = [Patch(facecolor=f"#{r:02x}{g:02x}{b:02x}", edgecolor="#999", label=name) for name, (r, g, b) in ERRORS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def error_map(example: Example) -> npt.NDArray[np.uint8]:
    """uint8 (h, w, 3): found, false alarm, missed, background, and not scored."""
    picture = np.empty((*example.label.shape, 3), np.uint8)
    picture[...] = BACKGROUND
    label, prediction = example.label, example.prediction
    picture[(label == 1) & (prediction == 1)] = FOUND
    picture[(label == 0) & (prediction == 1)] = FALSE_ALARM
    picture[(label == 1) & (prediction == 0)] = MISSED
    picture[label == -1] = UNSCORED
    return picture


def sections(report: EvaluationReport) -> list[Section]:
    """The report's parts: scores, best, median and worst chip, confusion matrix and baseline, and every chip."""
    test, baseline = report.test, report.baseline.scores
    names = {"iou": f"IoU of {report.classes[1]}", "miou": "mean IoU", "f1": "F1", "precision": "precision", "recall": "recall"}
    names["accuracy"] = "accuracy"
    index = report.baseline.name
    scores = [{"score": title, "model": getattr(test, name), index: getattr(baseline, name)} for name, title in names.items()]
    lead = (
        f"<p>{len(report.chips):,} whole chips, through the tiled predictor that serving uses, in {report.seconds:.1f} s. "
        f"The baseline is the index {index} with the threshold {report.baseline.threshold:.3f}, "
        "chosen on the training chips.</p>"
    )
    gallery = gallery_picture(report) if report.examples else note("No chip could be scored.")
    return [
        Section("Scores on the test chips", lead + table(scores)),
        Section("Best, median and worst chip", gallery),
        Section("Confusion and chips", drawn(overview(report), "confusion", _alternative(report))),
        Section("Every test chip", _chip_table(report)),
    ]


def gallery_picture(report: EvaluationReport) -> Picture:
    """`examples` as a picture of a page."""
    told = "; ".join(f"{example.kind} {example.chip}, IoU {_number(example.iou)}" for example in report.examples)
    words = f"Test chips in true colour, false colour, with label, prediction and error: {told}"
    return drawn(examples(report), "chips", words, imagery=True)


def page(report: EvaluationReport) -> str:
    """The whole report as one HTML page that loads nothing."""
    lead = f"Test IoU {_number(report.test.iou)}, {report.baseline.name} {_number(report.baseline.scores.iou)}."
    return whole_page(f"{report.title}: evaluation", lead, sections(report))


def _confusion(axis: Axes, report: EvaluationReport) -> None:
    matrix = np.asarray(report.confusion, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(2):
        for j in range(2):
            text = f"{100 * shares[i, j]:.1f} %\n{int(matrix[i, j]):,} px"
            axis.text(j, i, text, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axis.set_xticks([0, 1], report.classes)
    axis.set_yticks([0, 1], report.classes, rotation=90, va="center")
    axis.set_xlabel("prediction")
    axis.set_ylabel("label")
    axis.set_title(f"IoU {_number(report.test.iou)} ({report.baseline.name} {_number(report.baseline.scores.iou)})")


def _against_baseline(axis: Axes, report: EvaluationReport) -> None:
    ours, theirs = report.chips["iou"], report.chips["baseline_iou"]
    better = ours > theirs
    axis.plot([0, 1], [0, 1], color="#999", linewidth=1)
    for chosen, colour, marker, word in ((better, BLUE, "o", "model"), (~better & ours.notna(), VERMILLION, "X", report.baseline.name)):
        label = f"{word} better or equal ({chosen.sum():,})" if word != "model" else f"model better ({chosen.sum():,})"
        axis.scatter(theirs[chosen], ours[chosen], s=22, color=colour, marker=marker, edgecolor="white", linewidth=0.4, label=label)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_xlabel(f"{report.baseline.name}, IoU of one chip")
    axis.set_ylabel("model, IoU of the same chip")
    axis.set_title("each test chip", fontsize=10)
    axis.legend(fontsize=8, loc="lower right")


def _chip_table(report: EvaluationReport) -> str:
    chips = report.chips.sort_values("iou", na_position="last", kind="stable").head(MAX_ROWS)
    left = len(report.chips) - len(chips)
    rows = [_chip_row(row, report.baseline.name) for row in chips.to_dict("records")]
    more = f"<p>and {left:,} more with a better IoU</p>" if left else ""
    return folded(f"{len(chips):,} chips, the worst first", table(rows) + more)


def _chip_row(row: dict[Any, Any], baseline: str) -> dict[str, Any]:
    rounded = {name: float(f"{row[name]:.3g}") for name in ("iou", "baseline_iou", "precision", "recall", "labelled_ha", "predicted_ha")}
    return {
        "chip": row["chip"],
        "IoU": rounded["iou"],
        f"{baseline} IoU": rounded["baseline_iou"],
        "precision": rounded["precision"],
        "recall": rounded["recall"],
        "labelled ha": rounded["labelled_ha"],
        "predicted ha": rounded["predicted_ha"],
        "found px": int(row["tp"]),
        "false px": int(row["fp"]),
        "missed px": int(row["fn"]),
    }


def _alternative(report: EvaluationReport) -> str:
    (tn, fp), (fn, tp) = report.confusion
    better = int((report.chips["iou"] > report.chips["baseline_iou"]).sum())
    return (
        f"Confusion matrix in pixels: {tp:,} of {report.classes[1]} found, {fn:,} missed, {fp:,} false alarms, {tn:,} background; "
        f"and IoU of each chip against the baseline's: the model is better on {better} of {len(report.chips)}"
    )


def _mask_colours(mask: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    colours = np.array([BACKGROUND, (40, 40, 40), UNSCORED], np.uint8)  # indexed by 0, 1 and −1
    picture: npt.NDArray[np.uint8] = colours[mask]
    return picture


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:16]}…{name[-16:]}"
