"""The HTML report of a command: what its runs made, on one page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli import cost
from cli.summary import Summary
from hls_foundry import report as pages
from hls_foundry.home import foundry_home


def write_report(summary: Summary) -> Path | None:
    """Write `runs/RUN/report.html` in the home folder (and the Data Docs beside it); None where no step ran or the disk refuses."""
    if not summary.timings:
        return None
    folder = foundry_home() / "runs" / summary.runs[-1]["name"]
    content = summary.as_json()
    parts = (_figures, _evaluation, _training, _validation, _endpoint, _slurm, _lineage)
    sections = [section for part in parts for section in part(summary, content)]
    title = f"{summary.task.replace('_', ' ').capitalize()} on stack {summary.stack}"
    page = pages.page(title, f"Run {summary.runs[-1]['name']}: {summary.status}.", sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".report.html.partial"
        partial.write_text(page, encoding="utf-8")
        partial.replace(folder / "report.html")
        if validation := summary.artifacts.get("validation_report"):
            validation.write(folder / "data_docs.html")
    except OSError as error:  # the run itself is done: its summary must still be told
        click.echo(f"the report cannot be written to {folder} ({error.strerror}): free some space", err=True)
        return None
    return folder / "report.html"


def _figures(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    metrics, model, test = content.get("metrics"), content.get("model"), content.get("inference_test")
    shown: dict[str, str] = {}
    if metrics:
        shown |= {
            "IoU of class 1 (test)": f"{metrics['test']['iou']:.3f}",
            f"{metrics['baseline']['name']} baseline": f"{metrics['baseline']['iou']:.3f}",
        }
        shown |= {"mean IoU": f"{metrics['test']['miou']:.3f}", "F1": f"{metrics['test']['f1']:.3f}"}
    if test:
        shown |= {"endpoint agreement": f"{test['agreement']:.6f}", "median latency": f"{test['p50_ms']:.0f} ms"}
    if not shown:
        return []
    reason = f"<p>{pages.text(model['reason'])}.</p>" if model and "reason" in model else ""
    untrained = (
        "" if not model or model["pretrained"] is not False else "<p>The encoder started from random weights (pretrained: false).</p>"
    )
    return [pages.Section("At a glance", pages.tiles(shown) + reason + untrained)]


def _validation(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    report = summary.artifacts.get("validation_report")
    if report is None:
        return []
    rows = [
        {"check": check.name, "passed": check.passed, "observed": check.observed, "threshold": check.threshold} for check in report.checks
    ]
    bad = [{"chip": row["chip"], "reasons": row["reasons"]} for row in report.quarantined.to_dict("records")]
    quarantined = f"<h3>Quarantined chips</h3>{pages.table(bad)}" if bad else ""
    return [pages.Section("Data", pages.facts(content["data"]) + pages.table(rows) + quarantined)]


def _training(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    from hls_foundry.training.curves import curves_png

    history = summary.artifacts.get("training_history")
    if history is None:
        return []
    picture = pages.image(curves_png(history.records), "loss, validation IoU and learning rate over optimiser steps")
    return [pages.Section("Fine-tuning", picture + pages.facts(history.facts))]


def _evaluation(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    from hls_foundry.evaluation.plots import sections

    evaluation = summary.artifacts.get("evaluation")
    return [] if evaluation is None else sections(evaluation)


def _endpoint(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    from hls_foundry.endpoints.test_page import sections

    endpoint, test = content.get("endpoint"), summary.artifacts.get("inference_test")
    if endpoint is None:
        return []
    address = pages.Section("Endpoint", pages.facts(endpoint) + pages.commands(summary.commands()))
    return [address, *(sections(test) if test else [])]


def _slurm(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    slurm = content.get("slurm")
    if not slurm or not slurm["steps"]:
        return []
    heads = ("job", "state", "nodes", "elapsed", "waited", "node-hours", "CPU efficiency", "memory of a node")
    rows = [{"step": name} | dict(zip(heads, cost.cells(step), strict=True)) for name, step in slurm["steps"].items()]
    shown = {"node-hours": f"{slurm['node_hours']:.4f}", "waited": cost.duration(sum(step["wait_s"] for step in slurm["steps"].values()))}
    folder = pages.facts({"run folder": slurm["folder"]})
    return [pages.Section("Slurm", pages.tiles(shown) + pages.table(rows) + folder)]


def _lineage(summary: Summary, content: dict[str, Any]) -> list[pages.Section]:
    runs = [{key: run[key] or "" for key in ("pipeline", "name", "id", "status")} for run in summary.runs]
    body = pages.table(runs)
    if model := content.get("model"):
        body += pages.facts({key: value for key, value in model.items() if value is not None})
    seconds = [{"step": name, "seconds": value} for name, value in summary.timings.items()]
    return [pages.Section("Lineage", body + pages.table(seconds))]
