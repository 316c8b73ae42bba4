"""Which calls of AWS the code makes: read from its syntax, or noted while it runs; and which IAM actions they need."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore import xform_name

from hls_foundry.endpoints.aws import Aws

IAM_PREFIX = {
    "s3": "s3", "sagemaker": "sagemaker", "sagemaker-runtime": "sagemaker", "sts": "sts", "iam": "iam", "ecr": "ecr", "logs": "logs",
    "application-autoscaling": "application-autoscaling", "cloudwatch": "cloudwatch", "service-quotas": "servicequotas",
}  # fmt: skip
"""What the actions of a service begin with; a service that is not in here makes the test fail."""

TRANSFERS = {
    "upload_file": ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"),
    "upload_fileobj": ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"),
    "download_file": ("HeadObject", "GetObject"),
    "download_fileobj": ("HeadObject", "GetObject"),
    "copy": ("HeadObject", "CopyObject", "CreateMultipartUpload", "UploadPartCopy", "CompleteMultipartUpload", "AbortMultipartUpload"),
}
"""Methods that boto3 adds to the client of S3, and the operations that they consist of."""

OTHERWISE: dict[tuple[str, str], tuple[str, ...]] = {
    ("s3", "HeadBucket"): ("s3:ListBucket",),
    ("s3", "ListObjectsV2"): ("s3:ListBucket",),
    ("s3", "ListMultipartUploads"): ("s3:ListBucketMultipartUploads",),
    ("s3", "HeadObject"): ("s3:GetObject",),
    ("s3", "PutObject"): ("s3:PutObject", "s3:PutObjectTagging"),
    ("s3", "CopyObject"): ("s3:PutObject", "s3:PutObjectTagging", "s3:GetObject"),
    ("s3", "CreateMultipartUpload"): ("s3:PutObject", "s3:PutObjectTagging"),
    ("s3", "UploadPart"): ("s3:PutObject",),
    ("s3", "UploadPartCopy"): ("s3:PutObject", "s3:GetObject"),
    ("s3", "CompleteMultipartUpload"): ("s3:PutObject",),
    ("sagemaker", "CreateModel"): ("sagemaker:CreateModel", "sagemaker:AddTags", "iam:PassRole"),
    ("sagemaker", "CreateEndpointConfig"): ("sagemaker:CreateEndpointConfig", "sagemaker:AddTags"),
    ("sagemaker", "CreatePipeline"): ("sagemaker:CreatePipeline", "sagemaker:AddTags", "iam:PassRole"),
    ("sagemaker", "CreateEndpoint"): ("sagemaker:CreateEndpoint", "sagemaker:AddTags"),
    # https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling-prerequisites.html
    ("application-autoscaling", "RegisterScalableTarget"): (
        "application-autoscaling:RegisterScalableTarget", "application-autoscaling:TagResource", "iam:CreateServiceLinkedRole",
        "sagemaker:DescribeEndpoint", "sagemaker:DescribeEndpointConfig", "sagemaker:UpdateEndpointWeightsAndCapacities",
    ),
    ("application-autoscaling", "PutScalingPolicy"): (
        "application-autoscaling:PutScalingPolicy", "cloudwatch:PutMetricAlarm", "cloudwatch:DescribeAlarms", "cloudwatch:DeleteAlarms",
    ),
    ("cloudwatch", "PutMetricAlarm"): ("cloudwatch:PutMetricAlarm", "cloudwatch:TagResource"),
    ("sts", "GetCallerIdentity"): (),  # which all may
    ("sts", "AssumeRole"): (),  # needed by whoever assumes a role, not by the role itself: docs/aws.md
}  # fmt: skip
"""Operations whose name is not that of the one action that they need."""

ZENML = {"s3:GetBucketVersioning", "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
"""What ZenML's S3 artifact store needs (s3fs, and boto3 for the bucket's versioning)."""

Call = tuple[str, str]
"""(service, operation), such as ("s3", "PutObject")."""


def actions(call: Call) -> tuple[str, ...]:
    """The IAM actions that an operation needs."""
    return OTHERWISE.get(call, (f"{IAM_PREFIX[call[0]]}:{call[1]}",))


@lru_cache
def operations() -> dict[str, list[Call]]:
    """By the name of boto3's method: which operations it may be."""
    found: dict[str, list[Call]] = {}
    for service in IAM_PREFIX:
        for name in botocore.session.get_session().get_service_model(service).operation_names:
            found.setdefault(xform_name(name), []).append((service, name))
    del found["search"]  # SageMaker has one, which we do not use; regular expressions have as well
    return found


def calls_in(files: Iterable[Path]) -> dict[Call, list[str]]:
    """The operations that the code in `files` asks for, with where it does.

    What has the name of an operation is counted as one, also a method of ours that has it. Raises KeyError for an unknown service.
    """
    found: dict[Call, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for call in _calls_of(node):
                found.setdefault(call, []).append(f"{file.name}:{getattr(node, 'lineno', 0)}")
    return found


def _calls_of(node: ast.AST) -> Iterator[Call]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    method, first = node.func.attr, node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    if method == "client" and isinstance(first, str):
        IAM_PREFIX[first]
    if method in ("get_paginator", "get_waiter") and isinstance(first, str):
        yield from operations()[first]
    elif method in TRANSFERS and (method != "copy" or "s3" in ast.unparse(node.func.value)):
        yield from (("s3", operation) for operation in TRANSFERS[method])
    else:
        yield from operations().get(method, [])
        # Handed on as a word, as ControlPlane does with the names of paginators.
        words = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        yield from (call for word in words for call in operations().get(word, []))


@dataclass(frozen=True)
class NotingAws(Aws):
    """Clients that note each request, with its parameters, before it is sent."""

    noted: list[tuple[Call, dict[str, Any]]] = field(default_factory=list, compare=False)

    def client(self, service: str, **options: Any) -> Any:
        client = super().client(service, **options)

        def note(params: dict[str, Any], model: Any, **rest: Any) -> None:
            self.noted.append(((service, model.name), dict(params)))

        client.meta.events.register("provide-client-params.*.*", note, unique_id="noting")
        return client


def resource(call: Call, params: Mapping[str, Any]) -> str:
    """The ARN of what a request is about, as a policy's Resource has to match it; "*" where the service knows none."""
    service, operation = call
    if service == "s3":
        return f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")
    if service in ("sagemaker", "sagemaker-runtime") and not operation.startswith("List"):
        kinds = {"EndpointConfigName": "endpoint-config", "EndpointName": "endpoint", "ModelName": "model"}
        if "ResourceArn" in params:
            return str(params["ResourceArn"])
        kind = "EndpointName" if operation.endswith(("Endpoint", "EndpointAsync")) else next(key for key in kinds if key in params)
        return f"arn:aws:sagemaker:eu-central-1:123456789012:{kinds[kind]}/{params[kind]}"
    if service == "ecr":
        return f"arn:aws:ecr:eu-central-1:{params['registryId']}:repository/{params['repositoryName']}"
    if service == "logs":
        return f"arn:aws:logs:eu-central-1:123456789012:log-group:{params['logGroupName']}"
    if service == "cloudwatch" and operation != "DescribeAlarms":
        name = params["AlarmName"] if "AlarmName" in params else params["AlarmNames"][0]
        return f"arn:aws:cloudwatch:eu-central-1:123456789012:alarm:{name}"
    if service == "application-autoscaling" and not operation.startswith("Describe"):
        return "arn:aws:application-autoscaling:eu-central-1:123456789012:scalable-target/1"
    return "*"


def request_tags(params: Mapping[str, Any]) -> dict[str, str]:
    """The tags that a request gives to what it makes."""
    tags = params.get("Tags") or {}
    return dict(tags) if isinstance(tags, Mapping) else {tag["Key"]: tag["Value"] for tag in tags}
