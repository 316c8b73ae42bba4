"""The version of a task's model that is in production, and the chips it was tested on."""

import logging
from typing import Annotated

from zenml import step

from hls_foundry.chips.splits import Splits
from hls_foundry.config import DataConfig, TaskConfig
from hls_foundry.errors import EndpointError
from steps.artifacts import PublishedModel
from steps.materializers import ResultMaterializer
from steps.model_versions import production_version
from steps.names import MODEL, SPLITS, TEST_CHIPS
from steps.sources import on_this_machine

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def select_model(task: str) -> tuple[Annotated[PublishedModel, MODEL], Annotated[Splits, TEST_CHIPS]]:
    model, splits = in_production(task)
    log.info("select      %s version %s", task, model.version)
    return model, splits


def in_production(task: str) -> tuple[PublishedModel, Splits]:
    """Raises EndpointError, one line, where no version is in production, or one without its archive or its test chips."""
    version = production_version(task)
    if version is None:
        raise EndpointError(
            f"no version of model '{task}' is in production: train one first (python run.py --task {task} --pipeline train); "
            "if its model was not promoted, the line 'promote' above says why"
        )
    facts = version.run_metadata
    if "uri" not in facts:
        raise EndpointError(f"version {version.name} of model '{task}' is in production but not published: run --pipeline train again")
    linked = version.get_artifact(SPLITS)
    if linked is None:
        raise EndpointError(f"version {version.name} of model '{task}' has no test chips in its lineage: train it again with run.py")
    model = PublishedModel(
        model=task,
        version=version.name,
        stage=version.stage or "none",
        uri=str(facts["uri"]),
        sha256=str(facts["sha256"]),
        pretrained=bool(facts["pretrained"]),
        task=TaskConfig.model_validate(facts["task"]),
        data=DataConfig.model_validate(facts["data"]),
    )
    return model, on_this_machine(linked.load(), model.task, model.data)
