"""Every test chip over HTTP, against the in-process prediction of the same bundle."""

import logging
from pathlib import Path
from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.client import Client

from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.inference_test import InferenceTestReport, run_inference_test
from hls_foundry.endpoints.local import Endpoint
from hls_foundry.errors import EndpointError
from hls_foundry.progress import progress_bar
from steps.artifacts import PublishedModel
from steps.caching import depends_on
from steps.materializers import ResultMaterializer

log = logging.getLogger(__name__)


@step(cache_policy=depends_on("chips", "models", "inference", "serving", "endpoints"), output_materializers=ResultMaterializer)
def test_endpoint(endpoint: Endpoint, model: PublishedModel, splits: Splits) -> Annotated[InferenceTestReport, "inference_test"]:
    """Raises EndpointError, which fails the run, where the endpoint does not compute what was evaluated.

    Cached as long as the very same server process (it is part of `endpoint`) serves the same bundle: deploy has just checked that it does.
    """
    chips = splits.table[splits.table["split"] == "test"]
    with EndpointClient(endpoint.url) as client, progress_bar("inference test") as progress:
        report = run_inference_test(client, Path(model.uri), chips, splits.root, data=model.data, progress=progress)
    log.info("test        %d requests, %d errors, agreement %.6f", report.requests, report.errors, report.agreement)
    if problems := report.problems():
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EndpointError(f"endpoint '{endpoint.name}' failed its inference test: {problems[0]}{more}")
    version = Client().get_model_version(model.model, model.version)
    log_metadata(
        {
            "endpoint": {"name": endpoint.name, "target": "local", "url": endpoint.url, "kind": "realtime", "since": endpoint.since},
            "inference_test": {**report.summary(), "run": get_step_context().pipeline_run.name},
        },
        model_version_id=version.id,
    )
    return report
