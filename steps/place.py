"""The archives of the models where the endpoint will read them: in S3 for SageMaker."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from zenml import get_step_context, step
from zenml.client import Client
from zenml.utils.metadata_utils import log_metadata

from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.archives import archive_here
from hls_foundry.endpoints.publish import publish_bundle
from hls_foundry.endpoints.settings import EndpointSettings, PublishSettings
from hls_foundry.home import foundry_home
from hls_foundry.models.bundle import load_bundle, unpack_bundle
from hls_foundry.progress import progress_bar
from steps.artifacts import PlacedModel, PlacedModels, PublishedModel
from steps.materializers import ResultMaterializer
from steps.names import PLACED_MODELS
from steps.select_model import in_production

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def place(
    model: PublishedModel, splits: Splits, endpoint: EndpointSettings, publishing: PublishSettings
) -> Annotated[PlacedModels, PLACED_MODELS]:
    """Not cached: it makes sure that the archives are there. A multi-model endpoint gets the other tasks' production versions too."""
    chosen = {model.model: (model, splits)}
    if endpoint.kind == "multi_model":
        chosen |= {task: in_production(task) for task in endpoint.tasks if task != model.model}
    return PlacedModels([_placed(published, chips, endpoint, publishing) for published, chips in chosen.values()])


def _placed(model: PublishedModel, splits: Splits, endpoint: EndpointSettings, publishing: PublishSettings) -> PlacedModel:
    archive = archive_here(model.uri, model.sha256, foundry_home() / "archives", publishing.aws)
    with TemporaryDirectory(prefix="hls-place-") as folder:
        unpack_bundle(archive, Path(folder) / "bundle")
        digest = load_bundle(Path(folder) / "bundle").sha256
    uri = str(archive)
    if endpoint.target == "sagemaker":
        with progress_bar("upload") as progress:
            published = publish_bundle(archive, publishing, task=model.model, version=model.version, progress=progress)
        uri = published.uri
        version = Client().get_model_version(model.model, model.version)
        log_metadata({"s3_uri": uri, "placed_by": get_step_context().pipeline_run.name}, model_version_id=version.id)
    log.info("place       %s version %s: %s", model.model, model.version, uri)
    return PlacedModel(model=model, splits=splits, archive=archive, uri=uri, bundle_sha256=digest)
