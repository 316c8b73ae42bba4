"""What SageMaker refuses at CreateModel and CreateEndpointConfig and moto takes: roles, model data and settings that cannot work."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from moto.ecr.models import ecr_backends
from moto.iam.models import iam_backends
from moto.s3.models import FakeBucket, s3_backends
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import Model

_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/([a-z0-9._/-]+?)(?::([\w.-]+)|@(sha256:[0-9a-f]{64}))?")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)")


def model_data(container: Mapping[str, Any]) -> str:
    """Where the container's model lies: ModelDataUrl, or ModelDataSource's URI; "" for none."""
    source = (container.get("ModelDataSource") or {}).get("S3DataSource") or {}
    return str(container.get("ModelDataUrl") or source.get("S3Uri") or "")


def check_model(role: str | None, containers: Sequence[Mapping[str, Any]], account: str, region: str) -> None:
    """Raises ValidationError, in AWS's words, for a role that SageMaker may not take, an image or model data that are not there."""
    _check_role(role or "", account)
    for container in containers:
        _check_image(str(container.get("Image", "")), region)
        if uri := model_data(container):
            _check_data(uri, multi_model=container.get("Mode") == "MultiModel", role=role or "", account=account, region=region)


def _check_role(arn: str, account: str) -> None:
    for role in iam_backends[account]["aws"].get_roles():
        if role.arn == arn:
            trust = json.loads(unquote(role.assume_role_policy_document) or "{}")
            if "sagemaker.amazonaws.com" in json.dumps(trust):
                return
    raise ValidationError(
        message=f"Could not assume role {arn}. Please ensure that the role exists and allows principal 'sagemaker.amazonaws.com' "
        "to assume the role."
    )


def _check_image(image: str, region: str) -> None:
    match = _ECR.fullmatch(image)
    if match is None:
        raise ValidationError(
            message=f'Using non-ECR image "{image}" without Vpc repository access mode is not supported. '
            "Please provide a valid Amazon Elastic Container Registry path of an image in the region of the model."
        )
    owner, there, repository, tag, digest = match.groups()
    held = ecr_backends[owner][there].repositories.get(repository) if there == region else None
    images = held.images if held else []
    if not any((tag or "latest") in image.image_tags if not digest else image.get_image_digest() == digest for image in images):
        raise ValidationError(message=f"Requested image {image} not found.")


def _check_data(uri: str, *, multi_model: bool, role: str, account: str, region: str) -> None:
    match = _S3.fullmatch(uri)
    if match is None:
        raise ValidationError(message=f'Invalid S3 URI "{uri}": model data must be given as s3://bucket/key')
    bucket: FakeBucket | None = s3_backends[account]["aws"].buckets.get(match[1])
    there = bucket is not None and bucket.region_name == region
    if there and (multi_model or (bucket is not None and match[2] in bucket.keys)):
        return
    raise ValidationError(
        message=f'Could not access model data at {uri}. Please ensure that the role "{role}" exists and that its trust relationship policy '
        'allows the action "sts:AssumeRole" for the service principal "sagemaker.amazonaws.com". Also ensure that the role has '
        f'"s3:GetObject" permissions and that the object is located in {region}. If your Model uses multiple models or uncompressed '
        'models, please ensure that the role has "s3:ListBucket" permission.'
    )


def check_variants(variants: Sequence[Mapping[str, Any]], models: Mapping[str, Model], only_instances: Sequence[str]) -> None:
    """Raises ValidationError for variants that AWS refuses, and for more than one, which the rehearsal has not.

    `only_instances`: members of the configuration that serverless endpoints do not support.
    """
    if len(variants) != 1:
        raise ValidationError(message="The rehearsal runs endpoints of one production variant.")
    variant = variants[0]
    model = models.get(variant.get("ModelName", ""))
    containers = [model.primary_container, *model.containers] if model else []
    if "ServerlessConfig" not in variant:
        return
    if any((container or {}).get("Mode") == "MultiModel" for container in containers):
        raise ValidationError(message="Serverless Inference does not support MultiModel mode.")
    if only_instances:
        raise ValidationError(message=f"{only_instances[0]} is not supported for serverless endpoints.")
    if model and model.vpc_config:
        raise ValidationError(message="Serverless endpoints do not support VpcConfig.")
    if not 1 <= int(variant["ServerlessConfig"].get("MaxConcurrency") or 0) <= 200:
        raise ValidationError(message="MaxConcurrency of a serverless endpoint must be between 1 and 200.")
