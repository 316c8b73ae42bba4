"""model.tar.gz of a promoted version, complete with its test metrics, where deployments find it."""

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from zenml import get_step_context, step
from zenml.client import Client
from zenml.utils.metadata_utils import log_metadata

from hls_foundry.config import TaskConfig
from hls_foundry.endpoints.publish import Published, publish_bundle
from hls_foundry.endpoints.settings import PublishSettings
from hls_foundry.evaluation.evaluate import EvaluationReport
from hls_foundry.models.bundle import CARD, with_metrics
from hls_foundry.progress import progress_bar
from steps.artifacts import BundleFolder, PromotionRecord
from steps.lineage import record_run
from steps.materializers import ResultMaterializer
from steps.names import PUBLISHED

log = logging.getLogger(__name__)


@step(enable_cache=False, output_materializers=ResultMaterializer)
def publish(
    bundle: BundleFolder, evaluation: EvaluationReport, promotion: PromotionRecord, task: TaskConfig, publishing: PublishSettings
) -> Annotated[Published, PUBLISHED]:
    """Not cached: it makes sure that the archive is there. A version that is not promoted is not published (empty uri)."""
    if not promotion.promoted:
        log.info("publish     nothing: version %s was not promoted", promotion.version)
        return Published(uri="", sha256="")
    with TemporaryDirectory(prefix="hls-publish-") as folder, progress_bar("publish") as progress:
        final = with_metrics(bundle.path, Path(folder) / "bundle", metrics=evaluation.summary(), version=promotion.version)
        published = publish_bundle(final, publishing, task=task.name, version=promotion.version, progress=progress)
        published = replace(published, card=(final / CARD).read_text(encoding="utf-8"))
    version = Client().get_model_version(promotion.model, promotion.version)
    where = {"uri": published.uri, "sha256": published.sha256}
    log_metadata({**where, "published_by": get_step_context().pipeline_run.name}, model_version_id=version.id)
    record_run({"archive": where})
    log.info("publish     %s (sha256 %s)", published.uri, published.sha256[:12])
    return published
