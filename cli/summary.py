"""What a command's runs made: the JSON of design.md, lines for a person, and the HTML report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hls_foundry.errors import ConfigError, FoundryError
from hls_foundry.home import REPOSITORY

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from cli.cost import SlurmRecord
    from hls_foundry.endpoints.deployed import Deployed

RUN = f"{'.venv/bin/python' if Path(sys.prefix) == REPOSITORY / '.venv' else 'python'} run.py"
"""The command line as it is typed in the repository."""


class Summary:
    """Grows with each run. `rehearsed`: AWS was the rehearsal's."""

    def __init__(self, stack: str, task: str, *, rehearsed: bool = False) -> None:
        self.stack, self.task, self.rehearsed = stack, task, rehearsed
        self.status = "completed"
        self.problem: Exception | None = None
        self.failed_step: str | None = None
        self.runs: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}
        self.artifacts: dict[str, Any] = {}
        self.missing: dict[str, str] = {}
        self.report: Path | None = None
        self.slurm: list[SlurmRecord] = []

    @property
    def exit_code(self) -> int:
        """0: everything asked for is done; 2: what the user can mend; 1: a failed run."""
        if self.status == "completed":
            return 0
        return 2 if isinstance(self.problem, FoundryError) else 1

    def add(self, pipeline: str, run: PipelineRunResponse) -> None:
        """Take over what `run` made; a step that did not get that far leaves nothing. A run on Slurm that failed fails the command."""
        from cli import cost
        from cli.artifacts import made_by
        from cli.dashboard import run_url

        self.runs.append({"pipeline": pipeline, "name": run.name, "id": str(run.id), "url": run_url(run), "status": run.status.value})
        for name, step in run.steps.items():
            if step.start_time and step.end_time:
                self.timings[name] = 0.0 if step.status.value == "cached" else round((step.end_time - step.start_time).total_seconds(), 2)
            if step.status.value == "failed":
                self.failed_step = name
        made = made_by(run)
        self.artifacts |= made.artifacts
        self.missing |= made.missing
        if record := cost.slurm_record(run):
            self.slurm.append(record)
            if failed := cost.failure(run, record):
                self.failed_step, problem = failed
                self.fail(problem)

    def fail(self, problem: Exception) -> None:
        """The command failed for this reason; one that is known already, from nearer to where it went wrong, stays."""
        self.status, self.problem = "failed", self.problem or problem

    def commands(self) -> list[str]:
        """How to call the endpoint that was deployed, and how to delete it, one line each."""
        endpoint: Deployed = self.artifacts["endpoint"]
        if not self.rehearsed:
            return endpoint.commands(RUN)
        return endpoint.commands(RUN, "--rehearse", shell=f'eval "$({RUN} rehearsal up)"')

    def as_json(self) -> dict[str, Any]:
        """The summary of design.md; blocks whose step did not run are left out."""
        from cli import cost

        blocks = {
            "data": self._data(),
            "metrics": self._metrics(),
            "model": self._model(),
            "endpoint": self._endpoint(),
            "inference_test": self._test(),
            "slurm": cost.merged(self.slurm),
        }
        summary = {"status": self.status, "stack": self.stack, "task": self.task, "runs": self.runs}
        summary |= {name: block for name, block in blocks.items() if block is not None}
        summary["timings_s"] = self.timings
        if self.problem is not None:
            summary["error"] = {"step": self.failed_step, "message": str(self.problem)}
        return summary

    def _data(self) -> dict[str, Any] | None:
        inventory, report = self.artifacts.get("inventory"), self.artifacts.get("validation_report")
        if inventory is None or report is None:
            return None
        valid, bad = len(report.inventory.table), len(report.quarantined)
        return {"chips": len(inventory.table), "valid": valid, "quarantined": bad, "fingerprint": inventory.fingerprint}

    def _metrics(self) -> dict[str, Any] | None:
        evaluation = self.artifacts.get("evaluation")
        return None if evaluation is None else evaluation.summary()

    def _model(self) -> dict[str, Any] | None:
        deployed, promotion, published = (self.artifacts.get(name) for name in ("model", "promotion", "published"))
        history = self.artifacts.get("training_history")
        pretrained = None if history is None else history.facts["pretrained"]
        if promotion is not None:
            made = {"name": promotion.model, "version": promotion.version, "stage": promotion.stage, "reason": promotion.reason}
            return {
                **made,
                "uri": published.uri if published else None,
                "sha256": published.sha256 if published else None,
                "pretrained": pretrained,
            }
        if deployed is not None:
            made = {"name": deployed.model, "version": deployed.version, "stage": deployed.stage}
            return {**made, "uri": deployed.uri, "sha256": deployed.sha256, "pretrained": deployed.pretrained}
        return None

    def _endpoint(self) -> dict[str, Any] | None:
        endpoint = self.artifacts.get("endpoint")
        if endpoint is None:
            return None
        return {name: getattr(endpoint, name) for name in ("name", "target", "url", "kind", "model_version")}

    def _test(self) -> dict[str, Any] | None:
        test = self.artifacts.get("inference_test")
        return None if test is None else test.summary()


def write(summary: Summary, json_file: Path | None) -> None:
    """Print the summary for a person (to standard error where the JSON goes to standard output), and write the JSON where asked."""
    to_standard_output = json_file is not None and str(json_file) == "-"
    for line in lines(summary):
        click.echo(line, err=to_standard_output)
    if json_file is None:
        return
    text = json.dumps(summary.as_json(), indent=2, default=str) + "\n"
    if to_standard_output:
        sys.stdout.write(text)
        return
    partial = json_file.with_name(f".{json_file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(json_file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"--json {json_file} cannot be written: {error.strerror}") from None


def lines(summary: Summary) -> list[str]:
    """The summary as a person reads it."""
    from cli import cost

    content = summary.as_json()
    out = [""]
    if data := content.get("data"):
        out.append(f"chips       {data['chips']}, {data['valid']} valid, {data['quarantined']} quarantined")
    if metrics := content.get("metrics"):
        test, baseline = metrics["test"], metrics["baseline"]
        against = f"{baseline['name']} baseline {_figure(baseline['iou'])}"
        out.append(f"test        IoU {_figure(test['iou'])} ({against}), mean IoU {_figure(test['miou'])}, F1 {_figure(test['f1'])}")
    if model := content.get("model"):
        out.append(
            f"model       {model['name']} version {model['version']} ({model['stage']}), pretrained: {str(model['pretrained']).lower()}"
        )
        out += [f"            {model['reason']}"] if "reason" in model else []
    if test := content.get("inference_test"):
        out.append(
            f"endpoint    {test['requests']} requests, {test['errors']} errors, agreement {test['agreement']:.6f}, "
            f"p50 {test['p50_ms']:.0f} ms, p95 {test['p95_ms']:.0f} ms"
        )
    if slurm := content.get("slurm"):
        out += cost.lines(slurm)
    out += [f"missing     {name.replace('_', ' ')} cannot be read: {why}" for name, why in summary.missing.items()]
    if summary.report:
        out.append(f"report      {summary.report}")
    if summary.runs:
        out.append(f"lineage     {summary.runs[-1]['url'] or f'{RUN} dashboard'}")
    if endpoint := content.get("endpoint"):
        out += [
            "",
            f"{endpoint['name']} answers at {endpoint['url']} with version {endpoint['model_version']}",
            *(f"  {line}" for line in summary.commands()),
        ]
    if summary.problem is not None:
        where = f" in step {summary.failed_step}" if summary.failed_step else ""
        reason = str(summary.problem).removeprefix(f"{summary.failed_step}: ")  # of jobs elsewhere it begins with the step
        out += ["", click.style(f"error{where}: {reason}", fg="red"), *(f"  {line}" for line in _what_next(summary))]
    return out


def _what_next(summary: Summary) -> list[str]:
    """Of a failed run: where its log is, and what to type next."""
    from cli import cost

    run, step = summary.runs[-1]["name"] if summary.runs else "", summary.failed_step
    told = []
    if run and summary.timings:  # a submission that failed left no log
        told.append(f"its log: {RUN} logs {run}" + (f" --step {step}" if step else ""))
    if summary.slurm and step:
        told += cost.advice(summary.slurm[-1], step, summary.stack, str(summary.problem))
    else:
        if not isinstance(summary.problem, FoundryError):  # nothing that a user did: perhaps something is missing here
            told.append(f"check: {RUN} doctor --stack {summary.stack}")
        told.append(f"next: {cost.MENDED}")
    return [*told, f"again: {typed()}"]


def typed() -> str:
    """The command that runs, as it was typed."""
    return shlex.join([*RUN.split(), *sys.argv[1:]])


@contextmanager
def standard_output_for(json_file: Path | None) -> Iterator[None]:
    """While the body runs with `--json -`, whatever writes to standard output, in child processes too, goes to standard error."""
    if json_file is None or str(json_file) != "-":
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
