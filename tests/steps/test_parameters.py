"""Settings of stack files as parameters of steps: what ZenML makes of them comes back as what it was."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from zenml.steps.entrypoint_function_utils import validate_entrypoint_function
from zenml.utils.pydantic_utils import validate_function_args

from hls_foundry.endpoints.settings import AwsSettings, EndpointSettings, LocalSettings, PublishSettings, SageMakerSettings

IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/serve:1"


def entrypoint(settings: EndpointSettings, publishing: PublishSettings) -> None:
    """As a step's function."""


@pytest.mark.parametrize(
    ("settings", "publishing"),
    [
        (LocalSettings(), PublishSettings(folder="x")),
        (
            SageMakerSettings(name="x", role="Hls", image=IMAGE, s3_allow=("models",), aws=AwsSettings(region="eu-central-1")),
            PublishSettings(bucket="models", aws=AwsSettings(profile="science")),
        ),
    ],
)
def test_settings_survive_being_parameters(settings: Any, publishing: PublishSettings) -> None:
    given: dict[str, BaseModel] = {"settings": settings, "publishing": publishing}
    # ZenML's configuration keeps what was set, as JSON.
    stored = {name: value.model_dump(mode="json", exclude_unset=True) for name, value in given.items()}
    definition = validate_entrypoint_function(entrypoint)
    for name in given:
        definition.validate_input(name, given[name])
        definition.validate_input(name, stored[name])
    assert validate_function_args(entrypoint, ConfigDict(arbitrary_types_allowed=True), **stored) == given
