"""The production bundle behind a local endpoint; the one before answers until the new one has passed a first test."""

import logging
from pathlib import Path
from typing import Annotated

from zenml import step

from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.inference_test import run_inference_test
from hls_foundry.endpoints.local import Endpoint, LocalEndpoints
from hls_foundry.endpoints.settings import EndpointSettings
from hls_foundry.errors import EndpointError
from hls_foundry.home import foundry_home
from steps.artifacts import PublishedModel
from steps.materializers import ResultMaterializer

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def deploy(model: PublishedModel, splits: Splits, settings: EndpointSettings) -> Annotated[Endpoint, "endpoint"]:
    first_chip = splits.table[splits.table["split"] == "test"].head(1)

    def check(client: EndpointClient) -> None:
        problems = run_inference_test(client, Path(model.uri), first_chip, splits.root, data=model.data).problems()
        if problems:
            raise EndpointError(f"the new endpoint did not pass its first test ({problems[0]}): the one before goes on answering")

    endpoint = LocalEndpoints(foundry_home() / "endpoints").deploy(
        settings.name.format(task=model.model),
        Path(model.uri),
        sha256=model.sha256,
        model_version=model.version,
        port=settings.port,
        check=check,
    )
    log.info("deploy      %s answers with version %s", endpoint.url, endpoint.model_version)
    return endpoint
