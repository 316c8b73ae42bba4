"""Settings come from the environment, and a bad one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hls_foundry.errors import ConfigError
from hls_foundry.serving.settings import ServingSettings


def test_the_platforms_variables_and_ours_are_read() -> None:
    settings = ServingSettings.from_environment(
        {
            "SM_MODEL_DIR": "/m",
            "SAGEMAKER_BIND_TO_PORT": "9000",
            "SAGEMAKER_MULTI_MODEL": "true",
            "HLS_S3_ALLOW": "a-b, c.d",
            "HLS_QUEUE": "3",
        }
    )
    assert (settings.model_dir, settings.port, settings.multi_model) == (Path("/m"), 9000, True)
    assert settings.s3_allow == ("a-b", "c.d")
    assert settings.queue == 3


def test_defaults_are_the_contracts() -> None:
    settings = ServingSettings.from_environment({"HLS_S3_ALLOW": "", "SAGEMAKER_BIND_TO_PORT": ""})
    assert (settings.model_dir, settings.port, settings.multi_model, settings.s3_allow) == (Path("/opt/ml/model"), 8080, False, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "80a"),
        ("SAGEMAKER_BIND_TO_PORT", "70000"),
        ("HLS_QUEUE", "-1"),
        ("HLS_MODEL_SHA256", "abc"),
        ("HLS_MODEL_SHA256", f"{'a' * 64},abc"),
        ("HLS_WORKERS", "0"),
    ],
)
def test_a_bad_variable_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as refusal:
        ServingSettings.from_environment({name: value})
    assert "\n" not in str(refusal.value)
