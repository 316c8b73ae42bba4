"""The checks of `run.py doctor` for training as SageMaker jobs: ZenML's server, the settings, and the jobs' role, image and quotas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cli.doctor import Check
from cli.doctor_aws import _image, _role, _try
from cli.on_sagemaker import check_server, pipeline_options
from hls_foundry.endpoints.aws import DENIED, Aws, aws_errors, error_code
from hls_foundry.endpoints.settings import SageMakerSettings
from hls_foundry.errors import ConfigError, EndpointError
from stacks.aws.managed import execution_role

if TYPE_CHECKING:
    from stacks.definition import StackDefinition

ROLE_REMEDY = (
    "make it with docs/aws/role-trust.json and docs/aws/managed-role-policy.json (docs/aws.md), or name another in HLS_AWS_TRAIN_ROLE"
)


def check_managed(definition: StackDefinition) -> Iterator[Check]:
    """All checks that the jobs need; those of the account only where it can be asked, which check_account has told by then."""
    yield _server()
    aws = Aws(definition.publish.aws)
    try:
        aws.caller()
        options = pipeline_options(definition)
    except ConfigError as error:
        yield Check("jobs", False, "not usable", str(error))
        return
    except EndpointError:
        return
    types = instance_types(options)
    yield Check("jobs", True, ", ".join(f"{count} of {name}" for name, count in types.items()) + f", image {definition.settings.image}")
    yield Check("docker", True, "not needed: the stack gives the image (settings.image)")
    role = str(execution_role(definition))
    yield _of_jobs(_try("role", lambda: _role(aws, role)))
    for name in types:
        as_endpoint = {"name": "jobs", "role": role, "image": definition.settings.image, "instance_type": name}
        found = _try("image", lambda given=as_endpoint: _image(aws, SageMakerSettings.model_validate(given)))  # type: ignore[misc]
        if not found.passed or name == list(types)[-1]:
            yield _of_jobs(found)
            break
    yield from _quotas(aws, list(types))


def instance_types(options: dict[str, Any]) -> dict[str, int]:
    """How many of the steps run on which instance type."""
    from pipelines.train import STEPS

    usual = options["settings"]["orchestrator"]
    own = {name: step["settings"]["orchestrator"] for name, step in options["steps"].items()}
    return dict(Counter(str(own.get(name, usual).get("instance_type", "ml.m5.xlarge")) for name in STEPS))


def _server() -> Check:
    from zenml.client import Client

    try:
        check_server()
    except ConfigError as error:
        found, _, remedy = str(error).partition(": ")
        return Check("server", False, found, remedy)
    return Check("server", True, f"ZenML's store is a server: {Client().zen_store.url}")


def _of_jobs(check: Check) -> Check:
    """The finding on what the jobs use, told apart from that on what the endpoint does."""
    return replace(check, name=f"job {check.name}", remedy=ROLE_REMEDY if "HLS_AWS_ROLE" in check.remedy else check.remedy)


def _quotas(aws: Aws, types: list[str]) -> Iterator[Check]:
    """One instance of each type at a time is what a run takes; AWS counts over all jobs of the account and region."""
    from botocore.exceptions import ClientError

    names = {f"{name} for training job usage": name for name in types}
    try:
        with aws_errors("quotas"):
            try:
                pages = aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
                values = {quota["QuotaName"]: quota["Value"] for page in pages for quota in page["Quotas"] if quota["QuotaName"] in names}
            except ClientError as error:
                if error_code(error) not in DENIED:
                    raise
                yield Check("job quota", True, "may not be asked for (servicequotas:ListServiceQuotas)")
                return
    except EndpointError as error:
        found, _, remedy = str(error).rpartition(": ")
        yield Check("job quota", False, found, remedy)
        return
    where = f"https://{aws.region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"
    for name, instance in names.items():
        if name not in values:
            yield Check("job quota", True, f"AWS tells none called '{name}'")
        else:
            remedy = f"ask for more at {where}, or choose another instance than {instance} in settings"
            yield Check("job quota", values[name] >= 1, f"{name}: {values[name]:g}, and 1 needed", remedy)
