"""Draws an inference test: its figures, the polygons that came back, how long answers took, what was refused, and what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hls_foundry.endpoints.inference_test import GEOJSON, JSON, NPY, PNG, S3_URI, TIFF, FormatResult, InferenceTestReport
from hls_foundry.endpoints.polygon_maps import places_map, polygon_gallery
from hls_foundry.report import Picture, Section, table, tiles
from hls_foundry.report.picture import BLUE, ORANGE, VERMILLION, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PROBLEMS = 200
SHORT = {TIFF: "TIFF", JSON: "JSON", NPY: "NumPy", GEOJSON: "GeoJSON", PNG: "PNG", S3_URI: "s3:// URI"}


def inference_sections(report: InferenceTestReport) -> list[Section]:
    """The report's parts: figures, problems where there are any, returned polygons, latencies by format, and refused requests."""
    problems = [{"problem": problem} for problem in report.problems()[:MAX_PROBLEMS]]
    wrong = [Section("Problems", table(problems))] if problems else []
    maps = [picture for picture in (polygon_gallery(report.predictions), places_map(report.predictions)) if picture is not None]
    returned = [Section("Returned polygons", *maps)] if maps else []
    refused = [
        {"bad request": refusal.name, "as documented": "not judged" if refusal.note else not refusal.problem, "problem": refusal.problem}
        for refusal in report.bad_requests
    ]
    notes = table([{"note": note} for note in report.notes()]) if report.notes() else ""
    return [
        Section("Inference test", tiles(_figures(report)) + notes),
        *wrong,
        *returned,
        Section("Latencies", *latencies(report), table([_format_row(result) for result in report.formats if result.requests])),
        *([Section("Requests that must be refused", table(refused))] if refused else []),
    ]


def latencies(report: InferenceTestReport) -> list[Picture]:
    """How long answers took, as the client saw it: all of them, and by the formats of request and reply; nothing where none came."""
    from matplotlib.figure import Figure

    timed = [result for result in report.formats if result.seconds]
    if not timed:
        return []
    figure = Figure(figsize=(10.5, 1.4 + 0.27 * max(len(timed), 6)), layout="constrained")
    whole, by_format = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _distribution(whole, np.concatenate([result.seconds for result in timed]) * 1e3)
    _by_format(by_format, timed)
    for axes in (whole, by_format):
        axes.set_xlabel("milliseconds", fontsize=9)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    told = f"Distribution of {sum(len(result.seconds) for result in timed)} latencies: "
    told += f"median {report.p50_ms:.0f} ms, 95 % within {report.p95_ms:.0f} ms; and the same by formats of request and reply"
    return [drawn(figure, "latencies", told)]


def _distribution(axes: Axes, milliseconds: Any) -> None:
    axes.hist(milliseconds, bins=min(40, max(8, len(milliseconds) // 4)), color=BLUE, alpha=0.75)
    for percentile, colour, style in ((50, "black", "-"), (95, VERMILLION, "--")):
        value = float(np.percentile(milliseconds, percentile))
        axes.axvline(value, color=colour, linestyle=style, linewidth=1.5, label=f"p{percentile} {value:.0f} ms")
    axes.set_xlim(0, None)
    axes.set_ylabel("answers", fontsize=9)
    axes.set_title("All answers", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _by_format(axes: Axes, timed: list[FormatResult]) -> None:
    names = [f"{SHORT.get(result.request, result.request)} → {SHORT.get(result.reply, result.reply)}" for result in timed]
    spans = [np.asarray(result.seconds) * 1e3 for result in timed]
    style = {"facecolor": f"{ORANGE}80", "edgecolor": "#8a5f00"}
    axes.boxplot(
        spans, orientation="horizontal", widths=0.6, patch_artist=True, boxprops=style, medianprops={"color": "black"}, flierprops={"ms": 3}
    )
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.set_xlim(0, None)
    axes.invert_yaxis()
    axes.set_title("Request → reply", loc="left", fontsize=10)
    axes.grid(axis="x", color="#c9d1d9", linewidth=0.6)


def _figures(report: InferenceTestReport) -> dict[str, str]:
    shown = {"requests": f"{report.requests:,}", "errors": f"{report.errors:,}", "agreement": f"{report.agreement:.6f}"}
    if report.iou is not None:
        shown["IoU of class 1"] = f"{report.iou:.3f}"
    if not np.isnan(report.p50_ms):
        shown |= {"median latency": f"{report.p50_ms:.0f} ms", "95 % within": f"{report.p95_ms:.0f} ms"}
    return shown


def _format_row(result: FormatResult) -> dict[str, Any]:
    return {
        "request": result.request,
        "reply": result.reply,
        "requests": result.requests,
        "errors": result.errors,
        "agreement": "" if result.agreement is None else f"{result.agreement:.6f}",
        "median ms": result.p50_ms,
    }
