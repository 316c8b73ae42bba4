"""production model version → endpoint → inference test."""

from __future__ import annotations

from zenml import pipeline

from hls_foundry.endpoints.settings import EndpointSettings
from steps.deploy import deploy
from steps.select_model import select_model
from steps.test_endpoint import test_endpoint


@pipeline(name="deploy", enable_cache=False)
def deploy_pipeline(task: str, endpoint: EndpointSettings) -> None:
    """Nothing here is cached: an endpoint is alive or it is not."""
    model, splits = select_model(task=task)
    deployed = deploy(model, splits, settings=endpoint)
    test_endpoint(deployed, model, splits)
