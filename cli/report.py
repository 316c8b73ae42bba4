"""The report of one or more runs: every picture that the dashboard has of them, on one page that needs no network, and as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import cost
from cli.summary import Summary
from hls_foundry import report as pages
from hls_foundry.errors import ConfigError
from hls_foundry.home import foundry_home
from hls_foundry.progress import progress_bar
from hls_foundry.report.picture import write_pictures

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

PARTS = {
    "inventory": "Chips",
    "validation_report": "Data",
    "splits": "Splits",
    "training_history": "Fine-tuning",
    "evaluation": "Evaluation",
    "promotion": "Promotion",
    "published": "Published model",
    "model": "Model in production",
    "endpoint": "Endpoint",
    "inference_test": "Inference test",
}
"""Artifacts in the order in which a person wants to see them, and the heading where one is missing."""


def write_report(summary: Summary) -> Path | None:
    """Write `runs/RUN/report.html` in the home folder (and the Data Docs beside it); None where no step ran or the disk refuses."""
    if not summary.timings:
        return None
    folder = _folder(summary)
    try:
        _write(folder / "report.html", _page(summary, _sections(summary)))
        if validation := summary.artifacts.get("validation_report"):
            validation.write(folder / "data_docs.html")
    except OSError as error:  # the run itself is done: its summary must still be told
        click.echo(f"the report cannot be written to {folder} ({error.strerror}): free some space", err=True)
        return None
    return folder / "report.html"


def show_report(run: str, task: str | None, *, out: Path | None, png: Path | None) -> None:
    """Write the report of `run` (name, id or "latest", then of `task`) to `out` and its pictures to the folder `png`; print where they are.

    Of a run that goes on or has failed: what there is of it by now. Raises ConfigError, one line, for an unknown run or a place that
    cannot be written.
    """
    from cli.session import start_zenml

    start_zenml()
    with progress_bar("report"):
        summary = _summarise(_find(run, task))
        sections = _sections(summary)
    target = out or _folder(summary) / "report.html"
    try:
        _write(target, _page(summary, sections))
    except OSError as error:
        raise ConfigError(f"--out {target} cannot be written: {error.strerror}; choose another file") from None
    click.echo(f"report      {target} ({target.stat().st_size / 1e6:.1f} MB)")
    for name, why in summary.missing.items():
        click.echo(f"missing     {PARTS.get(name, name)}: {why}", err=True)
    if png is not None:
        try:
            written = write_pictures([picture for section in sections for picture in section.pictures], png)
        except OSError as error:
            raise ConfigError(f"--png {png} cannot be written: {error.strerror}; choose another folder") from None
        click.echo(f"pictures    {len(written)} PNG files in {png}")


def _find(run: str, task: str | None) -> list[PipelineRunResponse]:
    """The run, after the training run that published the model which it deploys."""
    from cli.runs import find_run, latest_run

    chosen = latest_run(task) if run == "latest" else find_run(run)
    return [*_training_of(chosen), chosen]


def _training_of(run: PipelineRunResponse) -> list[PipelineRunResponse]:
    from zenml.client import Client

    from steps.names import KEYS, MODEL

    for step in run.steps.values():
        for output in (output for outputs in step.outputs.values() for output in outputs):
            if KEYS.get(output.name, output.name) == KEYS[MODEL] and step.status.is_successful:
                name = _published_by(output)
                return [found] if name and (found := next(iter(Client().list_pipeline_runs(name=name).items), None)) else []
    return []


def _published_by(output: Any) -> str | None:
    """Name of the run that published the model which this artifact describes; None where that cannot be told any more."""
    from zenml.client import Client

    try:
        model = output.load()
        return str(Client().get_model_version(model.model, model.version).run_metadata["published_by"])
    except Exception:  # of any store: the report then tells of the deployment alone, and of the artifact that it is missing
        return None


def _summarise(runs: list[PipelineRunResponse]) -> Summary:
    from cli.runs import OUR_NAME
    from hls_foundry.endpoints.endpoint_page import rehearsed

    last = runs[-1]
    stack = last.stack.name.removeprefix("hls-") if last.stack else "that was deleted"
    name = OUR_NAME.fullmatch(last.name)
    summary = Summary(stack, name["task"] if name else last.name)
    for run in runs:
        summary.add(run.pipeline.name if run.pipeline else "", run)
    endpoint = summary.artifacts.get("endpoint")
    summary.rehearsed = endpoint is not None and rehearsed(endpoint)
    if last.status.is_failed:
        step = next((name for name, step in last.steps.items() if step.status.is_failed), None)
        told = last.steps[step].exception_info if step else None
        summary.failed_step = summary.failed_step or step
        summary.fail(Exception((told.message if told else None) or f"the run is {last.status.value}"))
    elif not last.status.is_finished:
        summary.status = last.status.value
    return summary


def _folder(summary: Summary) -> Path:
    return foundry_home() / "runs" / str(summary.runs[-1]["name"])


def _write(path: Path, page: str) -> None:
    """Raises OSError; a report that was there stays whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, "it is a folder")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _page(summary: Summary, sections: list[pages.Section]) -> str:
    title = f"{summary.task.replace('_', ' ').capitalize()} on stack {summary.stack}"
    lead = ". ".join(f"Run {run['name']}: {run['status']}" for run in summary.runs) + "."
    return pages.page(title, lead, sections, contents=True)


def _sections(summary: Summary) -> list[pages.Section]:
    content = summary.as_json()
    sections = [*_state(summary), *_figures(content)]
    for name, title in PARTS.items():
        sections += _part(summary, name, title)
    return [*sections, *_slurm(content), *_lineage(summary, content)]


def _part(summary: Summary, name: str, title: str) -> list[pages.Section]:
    from hls_foundry.chips.pictures import inventory_sections
    from hls_foundry.endpoints.endpoint_page import endpoint_sections
    from steps.pictures import sections_of

    if why := summary.missing.get(name):
        return [pages.Section(title, pages.note(f"This artifact cannot be read here: {why}"))]
    artifact = summary.artifacts.get(name)
    if artifact is None:
        return []
    if name == "endpoint":
        return endpoint_sections(artifact, summary.commands())
    if name == "inventory" and "splits" in summary.artifacts:  # whose map shows the same chips
        return inventory_sections(artifact, mapped=False)
    published = summary.artifacts.get("published")
    if name == "model" and published is not None and published.sha256 == artifact.sha256:
        return []
    return sections_of(artifact)


def _state(summary: Summary) -> list[pages.Section]:
    """What keeps the report from being whole."""
    if summary.status == "completed":
        return []
    if summary.problem is None:
        told = f"The run is {summary.status}: this is what it has made so far."
    else:
        where = f" in step {summary.failed_step}" if summary.failed_step else ""
        told = f"Failed{where}: {' '.join(str(summary.problem).split())}"
    return [pages.Section("State", pages.note(told))]


def _figures(content: dict[str, Any]) -> list[pages.Section]:
    metrics, model, test = content.get("metrics"), content.get("model"), content.get("inference_test")
    shown: dict[str, str] = {}
    if metrics:
        shown |= {
            "IoU of class 1 (test)": _score(metrics["test"]["iou"]),
            f"{metrics['baseline']['name']} baseline": _score(metrics["baseline"]["iou"]),
            "mean IoU": _score(metrics["test"]["miou"]),
            "F1": _score(metrics["test"]["f1"]),
        }
    if test:
        shown |= {"endpoint agreement": f"{test['agreement']:.6f}", "median latency": f"{test['p50_ms']:.0f} ms"}
    if not shown:
        return []
    reason = f"<p>{pages.text(model['reason'][:1].upper() + model['reason'][1:])}.</p>" if model and "reason" in model else ""
    untrained = (
        "" if not model or model["pretrained"] is not False else "<p>The encoder started from random weights (pretrained: false).</p>"
    )
    return [pages.Section("At a glance", pages.tiles(shown) + reason + untrained)]


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _slurm(content: dict[str, Any]) -> list[pages.Section]:
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
    known = {key: value for key, value in content.get("model", {}).items() if value is not None and key != "reason"}
    if data := content.get("data"):
        known["fingerprint of the chips"] = data["fingerprint"]
    seconds = [{"step": name, "seconds": f"{value:.1f}" if value else "cached"} for name, value in summary.timings.items()]
    return [pages.Section("Lineage", body + (pages.facts(known) if known else "") + pages.table(seconds))]
