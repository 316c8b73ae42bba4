"""Every test chip sent to the endpoint, against the in-process prediction of the same bundle."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.client import Client

from hls_foundry.endpoints.client import EndpointClient, Invoker
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.inbox import S3Inbox
from hls_foundry.endpoints.inference_test import InferenceTestReport, merged, run_inference_test
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from hls_foundry.endpoints.settings import EndpointSettings
from hls_foundry.errors import EndpointError
from hls_foundry.progress import progress_bar
from steps.artifacts import PlacedModels
from steps.caching import depends_on
from steps.materializers import ResultMaterializer
from steps.names import INFERENCE_TEST

log = logging.getLogger(__name__)


@step(cache_policy=depends_on("chips", "models", "inference", "serving", "endpoints"), output_materializers=ResultMaterializer)
def test_endpoint(endpoint: Deployed, models: PlacedModels, settings: EndpointSettings) -> Annotated[InferenceTestReport, INFERENCE_TEST]:
    """Raises EndpointError, which fails the run, where the endpoint does not compute what was evaluated.

    Cached as long as the very same server process, or deployment, serves the same bundle: deploy has just checked that it does.
    """
    reports = []
    for task, placed in models.by_task().items():
        table = placed.splits.table
        with _calling(endpoint, settings, task) as (client, inbox), progress_bar(f"inference test {task}") as progress:
            chips = table[table["split"] == "test"]
            data = placed.model.data
            reports.append(run_inference_test(client, placed.archive, chips, placed.splits.root, data=data, progress=progress, s3=inbox))
    report = merged(reports)
    log.info("test        %d requests, %d errors, agreement %.6f", report.requests, report.errors, report.agreement)
    if problems := report.problems():
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EndpointError(f"endpoint '{endpoint.name}' failed its inference test: {problems[0]}{more}")
    for placed in models.models:
        version = Client().get_model_version(placed.model.model, placed.model.version)
        facts = {key: getattr(endpoint, key) for key in ("name", "target", "url", "kind", "since")}
        facts |= asdict(container) if (container := getattr(endpoint, "container", None)) else {}
        log_metadata(
            {"endpoint": facts, "inference_test": {**report.summary(), "run": get_step_context().pipeline_run.name}},
            model_version_id=version.id,
        )
    return report


@contextmanager
def _calling(endpoint: Deployed, settings: EndpointSettings, task: str) -> Iterator[tuple[Invoker, S3Inbox | None]]:
    """A client of the endpoint, and a place in S3 that its container may read."""
    if not isinstance(endpoint, SageMakerEndpoint):
        with EndpointClient(endpoint.url) as client:
            yield client, None
        return
    from hls_foundry.endpoints.aws import Aws
    from hls_foundry.endpoints.sagemaker.invoker import inbox_of, invoker_for

    aws = Aws(settings.aws)
    inbox = inbox_of(endpoint, aws, kms_key=settings.kms_key)
    yield invoker_for(endpoint, aws, task=task, inbox=inbox), inbox if inbox.bucket in settings.s3_allow else None
