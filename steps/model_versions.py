"""The versions of a task's ZenML model: which one holds given weights, which one is in production."""

from zenml.client import Client
from zenml.enums import ModelStages
from zenml.models import ModelVersionResponse
from zenml.utils.metadata_utils import log_metadata

PRODUCTION = ModelStages.PRODUCTION


def version_of(task: str, title: str, weights_sha256: str) -> ModelVersionResponse:
    """The version of model `task` that holds these weights; a new one where there is none, so that a rerun makes no second."""
    client = Client()
    try:
        model = client.get_model(task)
    except KeyError:
        model = client.create_model(name=task, description=f"{title} from HLS chips, made by HLS Foundry")
    for version in client.list_model_versions(model=model.id, hydrate=True, size=500).items:
        if version.run_metadata.get("weights_sha256") == weights_sha256:
            return version
    version = client.create_model_version(model.id)
    log_metadata({"weights_sha256": weights_sha256}, model_version_id=version.id)
    return version


def production_version(task: str) -> ModelVersionResponse | None:
    """The version in production, with its metadata, or None."""
    try:
        return Client().get_model_version(task, PRODUCTION)
    except KeyError:
        return None
