"""Runs with artifacts that are drawn, made in a moment: a training whose last step may fail, and a deployment of what it published."""

from pathlib import Path
from typing import Annotated, Any

from click.testing import CliRunner
from zenml import get_step_context, pipeline, step
from zenml.client import Client

import run as command_line
from hls_foundry.chips.inventory import Inventory
from hls_foundry.config import load_config
from hls_foundry.errors import EndpointError
from hls_foundry.evaluation.metrics import Scores
from steps.artifacts import PromotionRecord, PublishedModel, TrainingHistory
from steps.materializers import ResultMaterializer
from steps.names import INVENTORY, MODEL, PROMOTION, TRAINING_HISTORY
from tests.steps import made_up

CONFIG = load_config(Path(__file__).resolve().parents[2] / "configs", task="burn_scars")


@step(output_materializers=ResultMaterializer)
def ingest() -> Annotated[Inventory, INVENTORY]:
    return made_up.inventory(CONFIG, chips=6)


@step(output_materializers=ResultMaterializer)
def fine_tune(inventory: Inventory) -> Annotated[TrainingHistory, TRAINING_HISTORY]:
    return TrainingHistory(made_up.history(steps=400), {"device": "cpu", "pretrained": False})


@step(output_materializers=ResultMaterializer)
def promote(history: TrainingHistory, fails: bool) -> Annotated[PromotionRecord, PROMOTION]:
    if fails:
        raise EndpointError("the version in production cannot be read: log in to S3")
    scores = Scores.from_confusion([[90, 10], [5, 95]])
    return PromotionRecord("burn_scars", "1", "production", True, "promoted: it is better", {"version 1": scores, "NBR baseline": scores})


@pipeline(name="train", enable_cache=False)
def train(fails: bool) -> None:
    promote(fine_tune(ingest()), fails)


@step(output_materializers=ResultMaterializer)
def select_model() -> Annotated[PublishedModel, MODEL]:
    return PublishedModel("burn_scars", "1", "production", "/published/model.tar.gz", "ab" * 32, False, CONFIG.task, CONFIG.data)


@pipeline(name="deploy", enable_cache=False)
def deploy() -> None:
    select_model()


def make_training(name: str, fails: bool) -> None:
    try:
        train.with_options(run_name=name)(fails)
    except RuntimeError as error:
        if "failure in step(s): promote" not in str(error):
            raise


def make_deployment(name: str) -> None:
    deploy.with_options(run_name=name)()


def lose(run: str, step_name: str) -> None:
    """Delete the files of what a step made, as somebody would who tidies up."""
    for outputs in Client().get_pipeline_run(run).steps[step_name].outputs.values():
        for output in outputs:
            (Path(output.uri) / "result.json").unlink()


@step
def look(inventory: Inventory, out: str) -> None:
    answer = CliRunner().invoke(command_line.main, ["report", get_step_context().pipeline_run.name, "--out", out])
    assert answer.exit_code == 0, answer.output


@pipeline(name="train", enable_cache=False)
def looked_at(out: str) -> None:
    look(ingest(), out)


def look_meanwhile(name: str, out: str) -> None:
    """Write the report of a run from inside of its second step."""
    looked_at.with_options(run_name=name)(out)


COMMANDS: dict[str, Any] = {function.__name__: function for function in (make_training, make_deployment, lose, look_meanwhile)}
