"""The bodies of the requests, held against files that a person has read, and against the shapes that botocore knows."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from hls_foundry.endpoints.sagemaker.autoscaling import alarm_request, scaling_requests
from hls_foundry.endpoints.sagemaker.resources import (
    ModelVersion,
    Plan,
    format_scaling,
    parse_scaling,
    plan_deployment,
    tag_list,
)
from hls_foundry.endpoints.settings import Autoscaling, SageMakerSettings
from hls_foundry.errors import EndpointError
from tests.endpoints.sagemaker.accounts import as_json

GOLDEN = Path(__file__).parent / "golden"
ROLE = "arn:aws:iam::123456789012:role/hls-foundry-sagemaker"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/hls-foundry-serve:1.0"
LINEAGE = {"zenml-run": "deploy-1", "dashboard": "http://127.0.0.1:8237/runs/1?tab=dag"}
EVERYTHING: dict[str, dict[str, Any]] = {
    "realtime": {
        "instance_type": "ml.c6i.xlarge",
        "instances": 2,
        "autoscaling": {"min": 1, "max": 4, "target_invocations": 120},
        "data_capture": {"s3": "s3://captured/hls", "percent": 20},
        "kms_key": "alias/hls",
        "subnets": "subnet-0a, subnet-0b",
        "security_groups": "sg-0a",
        "tags": {"team": "fire"},
        "environment": {"HLS_QUEUE": "32"},
        "s3_allow": "scenes, archive",
        "startup_s": 300,
    },
    "multi_model": {"name": "hls", "tasks": ("burn_scars", "flood"), "s3_allow": "scenes"},
    "async": {
        "output_prefix": "s3://results/hls/",
        "autoscaling": {"min": 0, "max": 2, "target_invocations": 5},
        "max_concurrency": 2,
        "kms_key": "alias/hls",
    },
    "serverless": {"memory_mb": 6144, "max_concurrency": 10},
}


def version(task: str, number: str = "3", bucket: str = "models") -> ModelVersion:
    digest = (task[0].encode().hex() + number.zfill(2)) * 16
    return ModelVersion(f"s3://{bucket}/hls-foundry/{task}/{number}-{digest[:12]}/model.tar.gz", digest, number, digest[::-1])


def plan(kind: str = "realtime", number: str = "3", **changes: Any) -> Plan:
    tasks = ("burn_scars", "flood") if kind == "multi_model" else ("burn_scars",)
    given = {"name": "hls-{task}", "kind": kind, "role": ROLE, "image": IMAGE, **EVERYTHING[kind], **changes}
    return plan_deployment(SageMakerSettings.model_validate(given), {task: version(task, number) for task in tasks}, LINEAGE, ROLE)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_request_bodies_are_those_on_file_and_valid_to_botocore(kind: str) -> None:
    made = plan(kind)
    requests: dict[str, Any] = {"CreateModel": made.model, "CreateEndpointConfig": made.config}
    requests["CreateEndpoint"] = {"EndpointName": made.endpoint, "EndpointConfigName": made.config_name, "Tags": tag_list(made.tags)}
    if made.autoscaling:
        scaling = scaling_requests(made.endpoint, kind, made.autoscaling)
        requests["RegisterScalableTarget"] = scaling.pop("target")
        requests |= {f"PutScalingPolicy {name}": body for name, body in scaling.items()}
        if "from_zero" in scaling:
            requests["PutMetricAlarm"] = alarm_request(made.endpoint, "arn:aws:autoscaling:eu-central-1:123456789012:scalingPolicy:1")
    copies = [[copy.source, f"s3://{copy.bucket}/{copy.key}"] for copy in made.copies]
    text = as_json({**requests, **({"copies": copies} if copies else {})})
    file = GOLDEN / f"{kind}.json"
    if os.environ.get("HLS_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "HLS_WRITE_GOLDEN=1 writes it anew: read the difference before you commit it"
    for name, body in requests.items():
        _valid(name.partition(" ")[0], body)


def _valid(operation: str, body: dict[str, Any]) -> None:
    service = {
        "RegisterScalableTarget": "application-autoscaling",
        "PutScalingPolicy": "application-autoscaling",
        "PutMetricAlarm": "cloudwatch",
    }
    model = botocore.session.get_session().get_service_model(service.get(operation, "sagemaker"))
    report = ParamValidator().validate(body, model.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()


def test_names_follow_from_the_content() -> None:
    first = plan()
    assert plan().model_name == first.model_name
    assert plan().config_name == first.config_name
    other_settings = plan(instances=3)
    assert other_settings.model_name == first.model_name
    assert other_settings.config_name != first.config_name
    for other in (plan(number="4"), plan(environment={}), plan(s3_allow="scenes"), plan(image=f"{IMAGE}1")):
        assert other.model_name != first.model_name
        assert other.config_name != first.config_name
    assert plan(autoscaling={"min": 2, "max": 3}).model_name == first.model_name
    assert (
        plan("multi_model", "4").model["PrimaryContainer"]["ModelDataUrl"] != plan("multi_model").model["PrimaryContainer"]["ModelDataUrl"]
    )


def test_tags_do_not_change_names() -> None:
    assert plan(tags={"team": "water"}).config_name == plan().config_name


def test_names_fit_however_long_the_endpoint_is_called() -> None:
    letters = set(string.ascii_letters + string.digits + "-")
    one, two = (plan(name="a" * 46 + "-" + last * 16) for last in "bc")
    for made in (one, two):
        for name in (made.endpoint, made.model_name, made.config_name):
            assert len(name) <= 63
            assert set(name) <= letters
            assert "--" not in name
    assert one.config_name != two.config_name


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 55 + "{task}", "at most 63"), ("burn--{task}-", "letters and digits"), ("-{task}", "pattern")]
)
def test_a_name_that_sagemaker_does_not_take_is_refused(name: str, message: str) -> None:
    with pytest.raises((EndpointError, ValueError), match=message):
        plan(name=name)


@pytest.mark.parametrize(
    ("kind", "tasks", "message"),
    [
        ("realtime", ("burn_scars", "flood"), "serves one model, not 2: use kind: multi_model"),
        ("multi_model", ("burn_scars",), "serves flood too, which has no model to deploy"),
        ("multi_model", ("burn_scars", "flood", "crops"), "does not serve crops"),
    ],
)
def test_models_must_be_those_that_the_settings_ask_for(kind: str, tasks: tuple[str, ...], message: str) -> None:
    settings = SageMakerSettings.model_validate({"name": "hls", "kind": kind, "role": ROLE, "image": IMAGE, **EVERYTHING[kind]})
    with pytest.raises(EndpointError, match=message):
        plan_deployment(settings, {task: version(task) for task in tasks}, {}, ROLE)


def test_a_model_that_is_not_in_s3_is_refused() -> None:
    settings = SageMakerSettings.model_validate({"name": "hls", "role": ROLE, "image": IMAGE})
    local = ModelVersion("/published/burn_scars/1/model.tar.gz", "a" * 64, "1", "b" * 64)
    with pytest.raises(EndpointError, match=r"is not in S3, where SageMaker fetches models: set publish\.bucket"):
        plan_deployment(settings, {"burn_scars": local}, {}, ROLE)


def test_tag_values_keep_to_what_aws_takes() -> None:
    value = tag_list(LINEAGE)[0]["Value"]
    assert value == "http://127.0.0.1:8237/runs/1_tab=dag"
    assert len(tag_list({"long": "x" * 400})[0]["Value"]) == 256


@pytest.mark.parametrize(
    "scaling", [None, Autoscaling(min=0, max=3, target_invocations=2.5), Autoscaling(min=2, max=30, target_invocations=100)]
)
def test_autoscaling_survives_in_a_tag(scaling: Autoscaling | None) -> None:
    assert parse_scaling(format_scaling(scaling)) == scaling
    assert parse_scaling("") is None
