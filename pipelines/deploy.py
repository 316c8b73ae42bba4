"""production model version → endpoint → inference test."""

from __future__ import annotations

from zenml import pipeline

from hls_foundry.endpoints.settings import EndpointSettings
from steps.deploy import deploy
from steps.select_model import select_model
from steps.test_endpoint import test_endpoint


@pipeline(name="deploy", enable_cache=True)
def deploy_pipeline(task: str, endpoint: EndpointSettings) -> None:
    """Only the test may be cached, for a server that has passed it: what is in production and what answers is looked up each time."""
    model, splits = select_model(task=task)
    deployed = deploy(model, splits, settings=endpoint)
    test_endpoint(deployed, model, splits)
