"""What a stack file may say of endpoints and of publishing, and what it is told where it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from hls_foundry.endpoints.settings import (
    AwsSettings,
    ContainerSettings,
    EndpointSettings,
    LocalSettings,
    PublishSettings,
    SageMakerSettings,
)
from hls_foundry.errors import ConfigError
from stacks.definition import load_stack

ENDPOINT: TypeAdapter[LocalSettings | SageMakerSettings] = TypeAdapter(EndpointSettings)
ROLE = "arn:aws:iam::123456789012:role/service-role/Hls"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/hls-foundry/serve:0.1.0"
LEAST = {"target": "sagemaker", "name": "hls-{task}", "role": ROLE, "image": IMAGE}
KINDS: dict[str, dict[str, Any]] = {
    "realtime": {"autoscaling": {"min": 1, "max": 3}, "data_capture": {"s3": "s3://models/captured", "percent": 10}},
    "multi_model": {"name": "both", "tasks": ["burn_scars", "flood"]},
    "async": {"output_prefix": "s3://models/async", "autoscaling": {"min": 0, "max": 2}, "max_concurrency": 2},
    "serverless": {"memory_mb": 6144, "max_concurrency": 5},
}


def read(**values: Any) -> LocalSettings | SageMakerSettings:
    return ENDPOINT.validate_python({**LEAST, **values})


def test_a_container_has_limits_and_an_image() -> None:
    settings = ENDPOINT.validate_python({"target": "container", "image": "", "memory_mb": "2048", "cpus": 1.5})
    assert settings == ContainerSettings(memory_mb=2048, cpus=1.5)
    assert ENDPOINT.validate_json(settings.model_dump_json(exclude_unset=True)) == settings
    for wrong in ({"memory_mb": 10}, {"cpus": 0}, {"engine": "runc"}, {"image": "-v"}, {"kind": "async"}):
        with pytest.raises(ValidationError):
            ENDPOINT.validate_python({"target": "container", **wrong})


def test_without_a_target_it_is_local() -> None:
    assert ENDPOINT.validate_python({"port": 8080}) == LocalSettings(port=8080)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_what_zenml_makes_of_a_parameter(kind: str) -> None:
    settings = SageMakerSettings(**{**LEAST, **KINDS[kind]}, kind=kind, aws=AwsSettings(role_arn=ROLE, external_id="x7"))  # type: ignore[arg-type]
    assert ENDPOINT.validate_json(settings.model_dump_json(exclude_unset=True)) == settings
    assert ENDPOINT.validate_python(settings.model_dump(mode="json")) == settings


def test_the_target_counts_as_given_where_it_was_left_at_its_default() -> None:
    without = SageMakerSettings(name="x", role=ROLE, image=IMAGE)
    assert ENDPOINT.validate_python(without.model_dump(exclude_unset=True)) == without


def test_names_are_filled_with_the_task_in_letters_that_sagemaker_takes() -> None:
    assert read().name_for("burn_scars") == "hls-burn-scars"
    assert LocalSettings().name_for("burn_scars") == "burn_scars"


def test_without_a_name_each_kind_has_its_own() -> None:
    def named(kind: str) -> str:
        given = {key: value for key, value in {**LEAST, **KINDS[kind]}.items() if key != "name"}
        settings = ENDPOINT.validate_python({**given, "kind": kind})
        assert ENDPOINT.validate_json(settings.model_dump_json(exclude_unset=True)) == settings
        return settings.name_for("burn_scars")

    names = {kind: named(kind) for kind in KINDS}
    assert names["realtime"] == "hls-burn-scars"
    assert names["async"] == "hls-burn-scars-async"
    assert "burn" not in names["multi_model"]
    assert len(set(names.values())) == len(KINDS)
    assert read(name="", kind="").name_for("flood") == "hls-flood"


def test_empty_text_and_lists_as_text_come_from_variables() -> None:
    settings = read(s3_allow="models, scenes", kms_key="", subnets="", autoscaling="", instances="2", aws={"region": "", "role_arn": ""})
    assert isinstance(settings, SageMakerSettings)
    assert settings.s3_allow == ("models", "scenes")
    assert settings.instances == 2
    assert (settings.kms_key, settings.subnets, settings.autoscaling, settings.aws) == (None, (), None, AwsSettings())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "multi_model", "tasks": ["a"]}, "name must do without {task}"),
        ({"kind": "multi_model", "name": "x"}, "multi_model needs tasks"),
        ({"kind": "async"}, "async needs output_prefix"),
        ({"max_concurrency": 3}, "max_concurrency is not for realtime"),
        ({"autoscaling": {"min": 0}}, "min: 0 is only for async"),
        ({"autoscaling": {"min": 3, "max": 2}}, "min 3 is more than max 2"),
        ({"kind": "serverless", "autoscaling": {}}, "serverless scales by itself"),
        ({"kind": "serverless", "data_capture": {"s3": "s3://models/x"}}, "serverless has no data_capture"),
        ({"kind": "serverless", "subnets": ["s"], "security_groups": ["g"]}, "outside a VPC"),
        ({"kind": "serverless", "max_concurrency": 201}, "at most 200"),
        ({"kind": "serverless", "memory_mb": 5000}, "multiple of 1024"),
        ({"subnets": ["s"]}, "both subnets and security_groups"),
        ({"tags": {"hls-foundry": "x"}}, "is reserved"),
        ({"tags": {"aws:x": "x"}}, "is reserved"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "no credentials here"),
        ({"environment": {"HLS_S3_ALLOW": "x"}}, "follows from the deployment"),
        ({"image": "docker.io/library/serve:1"}, "should match pattern"),
        ({"role": "arn:aws:iam::123:role/x"}, "should match pattern"),
        ({"aws": {"external_id": "x7"}}, "external_id is for role_arn"),
        ({"aws": {"secret_access_key": "x"}}, "Extra inputs"),
        ({"port": 8080}, "Extra inputs"),
        ({"target": "azure"}, "target must be local, container or sagemaker"),
    ],
)
def test_what_does_not_fit_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of folder and bucket"),
        ({"folder": "", "bucket": ""}, "exactly one of folder and bucket"),
        ({"folder": "x", "bucket": "models"}, "exactly one of folder and bucket"),
        ({"folder": "x", "kms_key": "alias/models"}, "are for a bucket"),
        ({"folder": "x", "aws": {"profile": "p"}}, "are for a bucket"),
        ({"bucket": "Models"}, "should match pattern"),
        ({"bucket": "models", "prefix": "a b"}, "should match pattern"),
    ],
)
def test_publishing_goes_to_one_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PublishSettings.model_validate(values)
    assert message in str(caught.value)


def test_the_place_is_said_in_a_word() -> None:
    assert PublishSettings(folder="x/y").place == "x/y"
    assert PublishSettings(bucket="models", prefix="/a/b/").place == "s3://models/a/b"


def test_the_external_id_is_not_in_repr() -> None:
    assert "x7y8" not in repr(PublishSettings(bucket="models", aws=AwsSettings(role_arn=ROLE, external_id="x7y8")))


STACK = "components: []\npublish: {bucket: '${BUCKET}', aws: {profile: '${PROFILE:-}'}}\nendpoint:\n"


def stack(folder: Path, endpoint: str, **environment: str) -> Any:
    (folder / "mine.yaml").write_text(STACK + endpoint)
    return load_stack("mine", {"BUCKET": "models", **environment}, folder)


def test_a_stack_file_names_a_sagemaker_endpoint(tmp_path: Path) -> None:
    definition = stack(tmp_path, f"  target: sagemaker\n  name: x\n  role: {ROLE}\n  image: {IMAGE}\n  kind: serverless\n")
    assert definition.endpoint == SageMakerSettings(name="x", role=ROLE, image=IMAGE, kind="serverless")
    assert definition.publish == PublishSettings(bucket="models")


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        ("  {target: sagemaker, name: x, role: r, imaeg: y}\n", r"'endpoint\.image': Field required"),
        (
            f"  {{target: sagemaker, name: x, role: r, image: '{IMAGE}', imaeg: y}}\n",
            r"'endpoint\.imaeg': unknown key: did you mean 'image'\?",
        ),
        (
            f"  {{target: sagemaker, name: x, role: r, image: '{IMAGE}', autoscaling: {{mini: 1}}}}\n",
            r"'endpoint\.autoscaling\.mini': unknown key: did you mean 'min'\?",
        ),
        ("  {target: azure}\n", "'endpoint': target must be local, container or sagemaker"),
        ("  {prot: 80}\n", r"'endpoint\.prot': unknown key: did you mean 'port'\?"),
        (f"  {{target: sagemaker, name: x, role: r, image: '{IMAGE}', kind: async}}\n", "'endpoint': async needs output_prefix"),
    ],
)
def test_wrong_endpoints_are_one_line_with_file_and_key(endpoint: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {line}") as caught:
        stack(tmp_path, endpoint)
    assert "\n" not in str(caught.value)
