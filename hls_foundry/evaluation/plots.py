"""Draws an evaluation report: figures for notebooks, and one self-contained page for the dashboard and the run's folder."""

from __future__ import annotations

import html
import io
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hls_foundry.report import Section, image
from hls_foundry.report import page as whole_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hls_foundry.evaluation.evaluate import EvaluationReport, Example

# Colour-blind safe (Okabe & Ito 2008).
FOUND, FALSE_ALARM, MISSED, BACKGROUND, UNSCORED = (0, 158, 115), (213, 94, 0), (86, 180, 233), (235, 235, 235), (150, 150, 150)
MAX_ROWS = 500


def overview(report: EvaluationReport) -> Figure:
    """The confusion matrix (share of each label) and the chips' IoU beside the baseline's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    matrix, chips = figure.subplots(1, 2)
    _confusion(matrix, report)
    _against_baseline(chips, report)
    return figure


def examples(report: EvaluationReport) -> Figure:
    """A row for the best, the median and the worst chip: true colour, false colour, label, prediction, errors."""
    from matplotlib.figure import Figure

    rows = max(len(report.examples), 1)
    figure = Figure(figsize=(13, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 5, squeeze=False)
    for row, example in zip(axes, report.examples, strict=False):
        pictures = (
            ("true colour", example.true_colour),
            ("SWIR 2, NIR, red", example.false_colour),
            ("label", _mask_colours(example.label)),
            ("prediction", _mask_colours(example.prediction)),
            ("errors", error_map(example)),
        )
        for axis, (title, picture) in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{example.kind}: IoU {_number(example.iou)}\n{_short(example.chip)}", fontsize=8)
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
    """The report's parts: scores, confusion matrix, best, median and worst chip, and every chip; pictures are data URIs."""
    test, baseline = report.test, report.baseline.scores
    scores = "".join(
        f"<tr><td>{title}</td><td>{_number(getattr(test, name))}</td><td>{_number(getattr(baseline, name))}</td></tr>"
        for name, title in (
            ("iou", f"IoU of {html.escape(report.classes[1])}"), ("miou", "mean IoU"), ("f1", "F1"),
            ("precision", "precision"), ("recall", "recall"), ("accuracy", "accuracy"),
        )
    )  # fmt: skip
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{name}'
        for name, colour in (
            ("found", FOUND), ("false alarm", FALSE_ALARM), ("missed", MISSED), ("background", BACKGROUND), ("not scored", UNSCORED),
        )
    )  # fmt: skip
    lead = (
        f"<p>{len(report.chips)} whole chips, through the tiled predictor that serving uses, in {report.seconds:.1f} s. "
        f"Baseline: {html.escape(report.baseline.name)} with the threshold {report.baseline.threshold:.3f}, "
        "chosen on the training chips.</p>"
    )
    head = f"<thead><tr><th>score</th><th>model</th><th>{html.escape(report.baseline.name)}</th></tr></thead>"
    return [
        Section("Scores on the test chips", f"{lead}<table>{head}<tbody>{scores}</tbody></table>"),
        Section("Best, median and worst chip", f'{_picture(examples(report), "test chips")}<p class="key">{key}</p>'),
        Section("Confusion and chips", _picture(overview(report), "confusion matrix, and IoU of each chip against the baseline's")),
        Section("Every test chip", f'<div class="scroll">{_chip_table(report)}</div>'),
    ]


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
    axis.plot([0, 1], [0, 1], color="#999", linewidth=1)
    axis.scatter(report.chips["baseline_iou"], report.chips["iou"], s=18, color=[c / 255 for c in MISSED], edgecolor="#333", linewidth=0.4)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel(f"{report.baseline.name}, IoU of one chip")
    axis.set_ylabel("model, IoU of the same chip")
    axis.set_title("above the line: the model is better")


def _chip_table(report: EvaluationReport) -> str:
    chips = report.chips.sort_values("iou", na_position="last", kind="stable").head(MAX_ROWS)
    names = ["chip", "iou", "baseline_iou", "precision", "recall", "labelled_ha", "predicted_ha", "tp", "fp", "fn"]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    rows = []
    for row in chips[names].to_dict("records"):
        cells = [html.escape(str(row["chip"]))]
        cells += [_number(float(row[name])) for name in names[1:5]]
        cells += ["–" if math.isnan(row[name]) else f"{row[name]:.1f}" for name in names[5:7]]
        cells += [f"{int(row[name]):,}" for name in names[7:]]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    left = len(report.chips) - len(chips)
    more = f"<p>and {left} more with a better IoU</p>" if left else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


def _mask_colours(mask: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    colours = np.array([BACKGROUND, (40, 40, 40), UNSCORED], np.uint8)  # indexed by 0, 1 and −1
    picture: npt.NDArray[np.uint8] = colours[mask]
    return picture


def _picture(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return image(buffer.getvalue(), alternative)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:16]}…{name[-16:]}"
