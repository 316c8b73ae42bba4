"""The production bundle behind an endpoint; the one before answers until the new one has passed a first test."""

import logging
from typing import Annotated

from zenml import get_step_context, step

from hls_foundry.endpoints.client import EndpointClient, Invoker
from hls_foundry.endpoints.container import container_spec
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.inference_test import run_inference_test
from hls_foundry.endpoints.local import LocalEndpoints
from hls_foundry.endpoints.settings import ContainerSettings, EndpointSettings, LocalSettings, SageMakerSettings
from hls_foundry.errors import EndpointError
from hls_foundry.home import foundry_home
from hls_foundry.revision import code_version
from steps.artifacts import PlacedModel, PlacedModels
from steps.lineage import facts_of, record_run
from steps.materializers import ResultMaterializer
from steps.names import ENDPOINT

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def deploy(models: PlacedModels, settings: EndpointSettings) -> Annotated[Deployed, ENDPOINT]:
    endpoint = _on_sagemaker(models, settings) if isinstance(settings, SageMakerSettings) else _on_this_machine(models, settings)
    record_run({"endpoint": facts_of(endpoint), "code": code_version()})
    log.info("deploy      %s answers with version %s", endpoint.url, endpoint.model_version)
    return endpoint


def _on_this_machine(models: PlacedModels, settings: LocalSettings | ContainerSettings) -> Deployed:
    placed = models.first
    container = container_spec(settings, placed.archive) if isinstance(settings, ContainerSettings) else None

    def check(client: EndpointClient) -> None:
        _first_test(placed, client)

    return LocalEndpoints(foundry_home() / "endpoints").deploy(
        settings.name_for(placed.model.model),
        placed.archive,
        sha256=placed.model.sha256,
        model_version=placed.model.version,
        port=settings.port,
        check=check,
        container=container,
    )


def _on_sagemaker(models: PlacedModels, settings: SageMakerSettings) -> Deployed:
    from hls_foundry.endpoints.aws import Aws
    from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints
    from hls_foundry.endpoints.sagemaker.resources import ModelVersion

    by_task = models.by_task()
    settings = settings.model_copy(update={"name": settings.name_for(models.first.model.model)})
    versions = {
        task: ModelVersion(uri=placed.uri, sha256=placed.model.sha256, version=placed.model.version, bundle_sha256=placed.bundle_sha256)
        for task, placed in by_task.items()
    }

    def check(task: str, client: Invoker) -> None:
        _first_test(by_task[task], client)

    def progress(state: str, seconds: float) -> None:
        log.info("deploy      %s, %.0f s", state, seconds)

    run = get_step_context().pipeline_run
    return SageMakerEndpoints(Aws(settings.aws)).deploy(
        settings, versions, tags={"zenml-run": run.name, "zenml-run-id": str(run.id)}, check=check, progress=progress
    )


def _first_test(placed: PlacedModel, client: Invoker) -> None:
    """One chip in every format, before the endpoint's traffic goes there. Raises EndpointError."""
    splits = placed.splits
    chip = splits.table[splits.table["split"] == "test"].head(1)
    problems = run_inference_test(client, placed.archive, chip, splits.root, data=placed.model.data).problems()
    if problems:
        raise EndpointError(f"the new endpoint did not pass its first test ({problems[0]}): the one before goes on answering")
