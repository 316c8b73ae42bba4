"""Draws what promotion decided: the candidate beside the index baseline and the version in production, on the same test chips."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hls_foundry.evaluation.metrics import Scores
from hls_foundry.report import Picture, Section, note, table, text, tiles
from hls_foundry.report.picture import BLUE, GREY, ORANGE, drawn

SHOWN = {"iou": "IoU", "miou": "mean IoU", "f1": "F1", "precision": "precision", "recall": "recall"}
COLOURS, HATCHES = (BLUE, GREY, ORANGE), ("", "///", "...")


def promotion_sections(*, version: str, stage: str, reason: str, compared: Mapping[str, Scores]) -> list[Section]:
    """`compared`: scores on the test chips by what has them, the candidate first; empty where nobody measured."""
    lead = tiles({"version": version, "stage": stage}) + f"<p>{text(reason[:1].upper() + reason[1:])}.</p>"
    if not compared:
        return [Section("Promotion", lead)]
    rows = [{"": who, **{title: getattr(scores, name) for name, title in SHOWN.items()}} for who, scores in compared.items()]
    return [Section("Promotion", lead, comparison(compared), table(rows))]


def comparison(compared: Mapping[str, Scores]) -> Picture | str:
    """Bars of each score, side by side; a note where no score is a number."""
    from matplotlib.figure import Figure

    if all(math.isnan(getattr(scores, name)) for scores in compared.values() for name in SHOWN):
        return note("No test chip has a pixel of class 1: there is no score to compare.")
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(compared)
    for number, (who, scores) in enumerate(compared.items()):
        values = [getattr(scores, name) for name in SHOWN]
        places = [place + (number - (len(compared) - 1) / 2) * width for place in range(len(SHOWN))]
        drawn_values = [0.0 if math.isnan(value) else value for value in values]
        colour, hatch = COLOURS[number % 3], HATCHES[number % 3]
        bars = axes.bar(places, drawn_values, width * 0.94, label=who, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        axes.bar_label(bars, ["–" if math.isnan(value) else f"{value:.2f}" for value in values], fontsize=7.5, padding=1)
    axes.set(ylim=(0, 1.08), xticks=range(len(SHOWN)))
    axes.set_xticklabels(SHOWN.values())
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    told = "; ".join(f"{who} {scores.iou:.3f}" for who, scores in compared.items())
    return drawn(figure, "comparison", f"Scores on the test chips side by side, IoU: {told}")
