"""production model version → archive in place → endpoint → inference test."""

from __future__ import annotations

from zenml import pipeline

from hls_foundry.endpoints.settings import EndpointSettings, PublishSettings
from steps.deploy import deploy
from steps.lineage import record_surroundings
from steps.place import place
from steps.select_model import select_model
from steps.test_endpoint import test_endpoint


@pipeline(name="deploy", enable_cache=True, on_success=record_surroundings)
def deploy_pipeline(task: str, endpoint: EndpointSettings, publishing: PublishSettings) -> None:
    """Only the test may be cached, for a server that has passed it: what is in production and what answers is looked up each time."""
    model, splits = select_model(task=task)
    placed = place(model, splits, endpoint=endpoint, publishing=publishing)
    deployed = deploy(placed, settings=endpoint)
    test_endpoint(deployed, placed, settings=endpoint)
