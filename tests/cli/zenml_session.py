"""A process with ZenML in a home of its own: makes a small run, then answers run.py's commands over its pipes, one JSON a line.

ZenML takes seconds to import and reads its home once, so that a test process cannot have one of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from cli.session import start_zenml

start_zenml()
from zenml import pipeline, step  # noqa: E402
from zenml.client import Client  # noqa: E402
from zenml.enums import MetadataResourceTypes  # noqa: E402
from zenml.models import RunMetadataResource  # noqa: E402

import run as command_line  # noqa: E402


@step
def ingest() -> int:
    print("stored by ZenML")
    return 1


@step
def fit(chips: int) -> None:
    raise RuntimeError("loss is nan")


@pipeline(name="small", enable_cache=False)
def small() -> None:
    fit(ingest())


def make_run(name: str, metadata: dict[str, Any], steps: dict[str, dict[str, Any]]) -> None:
    """A run whose second step fails, with what a Slurm run's metadata would say."""
    try:
        small.with_options(run_name=name)()
    except RuntimeError as error:
        if "failure in step(s): fit" not in str(error):
            raise
    run = Client().get_pipeline_run(name)
    _publish(run.id, MetadataResourceTypes.PIPELINE_RUN, metadata)
    for step_name, values in steps.items():
        _publish(run.steps[step_name].id, MetadataResourceTypes.STEP_RUN, {"slurm": values})


def make_model(name: str, versions: list[dict[str, Any]]) -> None:
    """A model whose versions have this metadata; the last one is in production."""
    model = Client().create_model(name)
    for values in versions:
        version = Client().create_model_version(model.id)
        _publish(version.id, MetadataResourceTypes.MODEL_VERSION, values)
    version.set_stage("production")


def store() -> dict[str, str]:
    """What ZenML's client uses."""
    client = Client()
    return {"type": client.zen_store.type.value, "url": client.zen_store.url, "stack": client.active_stack_model.name}


def submit(name: str, folder: str, slurm_conf: str) -> None:
    """Submit a run of three steps through the orchestrator; the second one waits."""
    from hls_foundry.endpoints.settings import PublishSettings
    from stacks.definition import Component, StackDefinition
    from stacks.registry import register_stack, use_stack
    from tests.slurm.pipelines import waiting

    configuration = {"folder": folder, "slurm_conf": slurm_conf, "synchronous": False, "time": "5"}
    orchestrator = Component(type="orchestrator", flavor="slurm", configuration=configuration)
    components = (orchestrator, Component(type="artifact_store", flavor="local"))
    publish = PublishSettings(folder=folder)
    use_stack(register_stack(StackDefinition(name="test", file=Path(folder), components=components, publish=publish)))
    settings = {"resources": {"cpu_count": 1, "memory": "700MB"}}
    waiting.with_options(run_name=name, settings=settings)(60)


def _publish(resource: Any, kind: MetadataResourceTypes, values: dict[str, Any]) -> None:
    if values:
        Client().create_run_metadata(metadata=values, resources=[RunMetadataResource(id=resource, type=kind)])


def summarise(name: str) -> dict[str, Any]:
    """The summary of the run: its JSON, its lines, its report."""
    from cli.report import write_report
    from cli.summary import Summary, lines

    summary = Summary("hpc", "burn_scars")
    summary.add("train", Client().get_pipeline_run(name))
    summary.report = write_report(summary)
    page = Path(summary.report).read_text() if summary.report else ""
    return {"json": summary.as_json(), "lines": lines(summary), "report": page, "exit_code": summary.exit_code}


def invoke(arguments: list[str]) -> dict[str, Any]:
    """run.py's answer to `arguments`."""
    answer = CliRunner().invoke(command_line.main, arguments)
    return {"code": answer.exit_code, "out": answer.stdout, "err": answer.stderr, "error": repr(answer.exception)}


COMMANDS = {function.__name__: function for function in (make_run, make_model, store, submit, summarise, invoke)}


def main() -> None:
    replies = sys.stdout
    sys.stdout = sys.stderr  # what is printed on the way must not get between the answers
    for line in sys.stdin:
        name, arguments = json.loads(line)
        if name not in COMMANDS:
            from tests.cli import drawn_runs

            COMMANDS.update(drawn_runs.COMMANDS)
        answer = COMMANDS[name](*arguments)
        print(json.dumps(answer, default=str), file=replies, flush=True)


if __name__ == "__main__":
    main()
