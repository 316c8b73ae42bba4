"""The checks of `run.py doctor` for a stack on AWS: who we are, and the buckets, role, image and quota that a deployment needs."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.doctor import Check
from hls_foundry.endpoints.aws import DENIED, Aws, aws_errors, error_code
from hls_foundry.endpoints.settings import TAG, AwsSettings, SageMakerSettings
from hls_foundry.errors import FoundryError

if TYPE_CHECKING:
    from stacks.definition import StackDefinition

SAGEMAKER = "sagemaker.amazonaws.com"
BUILD = "docker buildx build --platform linux/{architecture} --provenance=false --output type=docker"
LARGEST_CONFIG = 1 << 20
"""Bytes read of an image's configuration, which has a few thousand."""

SERVERLESS_QUOTA = "Maximum total concurrency that can be allocated across all serverless endpoints"
ROLE_REMEDY = "make it with docs/aws/role-trust.json and docs/aws/role-policy.json (docs/aws.md), or name another in HLS_AWS_ROLE"
_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)(?::([^@]+)|@(.+))")


def check_account(definition: StackDefinition) -> Iterator[Check]:
    """All checks of what `definition` uses of AWS; none but the first two where nobody can be asked."""
    endpoint = definition.endpoint if isinstance(definition.endpoint, SageMakerSettings) else None
    publishing = Aws(definition.publish.aws)
    aws = Aws(endpoint.aws) if endpoint and endpoint.aws != publishing.settings else publishing
    for name, look in (("region", _region), ("credentials", _credentials)):
        found = _try(name, lambda look=look: look(aws))  # type: ignore[misc]
        yield found
        if not found.passed:
            return
    chain = AwsSettings(region=publishing.settings.region, profile=os.environ.get("AWS_PROFILE") or None)
    for bucket in _buckets(definition):
        if bucket.of_zenml and publishing.settings != chain:
            yield _store(Aws(chain), bucket)
        else:
            yield _try("bucket", lambda bucket=bucket: _bucket(publishing, bucket))  # type: ignore[misc]
    if endpoint is None:
        return
    yield _try("role", lambda: _role(aws, endpoint.role))
    yield _try("image", lambda: _image(aws, endpoint))
    yield _try("quota", lambda: _quota(aws, endpoint))
    yield _try("endpoints", lambda: _endpoints(aws))


def _try(name: str, check: Callable[[], Check]) -> Check:
    """The finding, or the error as one: its line says what is wrong, and after the last colon what to do."""
    try:
        return check()
    except FoundryError as error:
        found, _, remedy = str(error).rpartition(": ")
        return Check(name, False, found, remedy)


def _region(aws: Aws) -> Check:
    return Check("region", True, aws.region)


def _credentials(aws: Aws) -> Check:
    caller = aws.caller()
    return Check("credentials", True, f"{caller.arn} of account {caller.account}")


@dataclass(frozen=True)
class Bucket:
    """A bucket of the stack. `prefix`: where we write; None where only the endpoint does, or its container reads.

    `of_zenml`: ZenML's artifact store writes there, by the usual chain of credentials and nothing else.
    """

    name: str
    prefix: str | None = None
    kms_key: str | None = None
    of_zenml: bool = False


def _buckets(definition: StackDefinition) -> list[Bucket]:
    """Each once: where we write, then the others that the endpoint names."""
    publish, endpoint = definition.publish, definition.endpoint
    written = [Bucket(publish.bucket, publish.prefix.strip("/"), publish.kms_key)] if publish.bucket else []
    for part in definition.components:
        if part.type == "artifact_store" and part.flavor == "s3":
            name, _, prefix = str(part.configuration.get("path", "")).removeprefix("s3://").partition("/")
            written.append(Bucket(name, prefix.strip("/"), of_zenml=True))
    others: list[str] = []
    if isinstance(endpoint, SageMakerSettings):
        results = endpoint.output_prefix if endpoint.kind == "async" else None
        folders = [results, endpoint.data_capture.s3 if endpoint.data_capture else None]
        others = [*endpoint.s3_allow, *(folder.removeprefix("s3://").partition("/")[0] for folder in folders if folder)]
    names = {bucket.name for bucket in written}
    return [*dict.fromkeys(written), *(Bucket(name) for name in dict.fromkeys(others) if name not in names)]


def _store(aws: Aws, bucket: Bucket) -> Check:
    """The artifact store's bucket, where the stack's role or profile is not what writes there."""
    found = _try("bucket", lambda: _bucket(aws, bucket))
    if found.passed:
        return Check("bucket", True, f"{found.found} by ZenML's store too, which does without the role or profile of the stack file")
    wanted = "give the role or profile in ~/.aws/config and export AWS_PROFILE (docs/aws.md)"
    return Check("bucket", False, f"ZenML's store does not take the role or profile of the stack file: {found.found}", wanted)


def _bucket(aws: Aws, bucket: Bucket) -> Check:
    from hls_foundry.endpoints.s3 import S3Objects

    S3Objects(aws).check_bucket(bucket.name)
    if bucket.prefix is None:
        return Check("bucket", True, f"s3://{bucket.name} is there")
    where, key = f"s3://{bucket.name}/{bucket.prefix}", f"{bucket.prefix}/.hls-doctor-{uuid.uuid4().hex}".lstrip("/")
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": bucket.kms_key} if bucket.kms_key else {}
    with aws_errors(where):
        s3 = aws.client("s3")
        s3.put_object(Bucket=bucket.name, Key=key, Body=b"", Tagging=f"{TAG}=doctor", **encryption)
        s3.delete_object(Bucket=bucket.name, Key=key)
    return Check("bucket", True, f"{where} can be written")


def _role(aws: Aws, role: str) -> Check:
    from botocore.exceptions import ClientError

    with aws_errors(f"role {role}"):
        try:
            found = aws.client("iam").get_role(RoleName=role.rpartition("/")[2])["Role"]
        except ClientError as error:
            if error_code(error) != "NoSuchEntity":
                raise
            return Check("role", False, f"{role} does not exist", ROLE_REMEDY)
    if role.startswith("arn:") and role != found["Arn"]:
        return Check("role", False, f"{role} does not exist, while {found['Arn']} does", "set HLS_AWS_ROLE to the ARN of the one you mean")
    if not trusts_sagemaker(found["AssumeRolePolicyDocument"]):
        remedy = f"`aws iam update-assume-role-policy --role-name {found['RoleName']} --policy-document file://docs/aws/role-trust.json`"
        return Check("role", False, f"{found['Arn']} does not trust {SAGEMAKER}, so that SageMaker cannot take it", remedy)
    return Check("role", True, f"{found['Arn']} trusts {SAGEMAKER}")


def trusts_sagemaker(trust: Mapping[str, Any]) -> bool:
    """Whether a role's trust policy lets SageMaker assume it; its conditions, such as of the account, are taken to hold."""
    for statement in _listed(trust.get("Statement")):
        principal = statement.get("Principal")
        services = _listed(principal.get("Service")) if isinstance(principal, Mapping) else []
        actions = {"sts:assumerole", "sts:*", "*"} & {str(action).lower() for action in _listed(statement.get("Action"))}
        if statement.get("Effect") == "Allow" and SAGEMAKER in services and actions:
            return True
    return False


def _listed(value: Any) -> list[Any]:
    """IAM's documents have one of something, or a list of it."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _image(aws: Aws, settings: SageMakerSettings) -> Check:
    from botocore.exceptions import ClientError

    image = settings.image
    match = _IMAGE.fullmatch(image)
    assert match is not None  # the settings have seen to it
    account, region, repository, tag, digest = match.groups()
    if region != aws.region:
        return Check("image", False, f"{image} is in {region}, the endpoint in {aws.region}", f"push the image to ECR in {aws.region}")
    which = {"registryId": account, "repositoryName": repository, "imageIds": [{"imageTag": tag} if tag else {"imageDigest": digest}]}
    with aws_errors(f"image {image}"):
        ecr = aws.client("ecr")
        try:
            described = ecr.describe_images(**which)["imageDetails"][0]
        except ClientError as error:
            if error_code(error) not in ("RepositoryNotFoundException", "ImageNotFoundException"):
                raise
            return Check("image", False, f"{image} is not in ECR ({error_code(error)})", "build and push it (docs/aws.md)")
        manifest = json.loads(ecr.batch_get_image(**which)["images"][0]["imageManifest"])
        media_type = str(manifest.get("mediaType") or described.get("imageManifestMediaType", ""))
        architectures = _architectures(ecr, which, manifest)
    wanted = wanted_architecture(settings)
    build = f"build it with `{BUILD.format(architecture=wanted)}` and push it again"
    if "oci" in media_type:
        return Check("image", False, f"{image} is of type {media_type}, and SageMaker takes Docker's own format only", build)
    if architectures and wanted not in architectures:
        host = "serverless" if settings.kind == "serverless" else settings.instance_type
        return Check("image", False, f"{image} is for {', '.join(sorted(architectures))}, and {host} needs {wanted}", build)
    pushed = f", pushed {described['imagePushedAt']:%Y-%m-%d}" if "imagePushedAt" in described else ""
    architecture = wanted if architectures else "unknown architecture"
    return Check("image", True, f"{repository}, {described['imageDigest'][:19]}, {architecture}{pushed}")


def wanted_architecture(settings: SageMakerSettings) -> str:
    """arm64 on Graviton instances, such as ml.c7g.large, else amd64."""
    graviton = re.fullmatch(r"ml\.[a-z]+\d+g[a-z]*\..*", settings.instance_type) is not None
    return "arm64" if graviton and settings.kind != "serverless" else "amd64"


def _architectures(ecr: Any, which: Mapping[str, Any], manifest: Mapping[str, Any]) -> set[str]:
    """What an image runs on: a list of images says it of each, a single one in its configuration, a blob. Empty where it cannot be had."""
    if "manifests" in manifest:
        platforms = (part.get("platform", {}).get("architecture", "") for part in manifest["manifests"])
        return {platform for platform in platforms if platform not in ("", "unknown")}  # unknown: attestations
    blob = manifest.get("config", {}).get("digest")
    if not blob:
        return set()
    given = {key: which[key] for key in ("registryId", "repositoryName")}
    url = ecr.get_download_url_for_layer(**given, layerDigest=blob)["downloadUrl"]
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return {str(json.loads(reply.read(LARGEST_CONFIG))["architecture"])}
    except (urllib.error.URLError, TimeoutError, ValueError, KeyError):
        return set()  # neither address nor error are told: the address is signed


def _quota(aws: Aws, settings: SageMakerSettings) -> Check:
    """Where the API tells; AWS counts instances over all endpoints of the account and region."""
    from botocore.exceptions import ClientError

    from hls_foundry.endpoints.sagemaker.resources import SERVERLESS_CONCURRENCY

    if settings.kind == "serverless":
        name, needed = SERVERLESS_QUOTA, settings.max_concurrency or SERVERLESS_CONCURRENCY
    else:
        name = f"{settings.instance_type} for endpoint usage"
        needed = max(settings.instances, settings.autoscaling.max if settings.autoscaling else 0)
    with aws_errors("quotas"):
        try:
            pages = aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
            value = next((quota["Value"] for page in pages for quota in page["Quotas"] if quota["QuotaName"] == name), None)
        except ClientError as error:
            if error_code(error) not in DENIED:
                raise
            return Check("quota", True, "may not be asked for (servicequotas:ListServiceQuotas)")
    if value is None:
        return Check("quota", True, f"AWS tells none called '{name}'")
    found = f"{name}: {value:g}, and {needed} needed"
    if value < needed:
        where = f"https://{aws.region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"
        return Check("quota", False, found, f"ask for more at {where} or choose a smaller endpoint")
    if settings.kind != "serverless" and value < 2 * needed:
        found += f" (an update in place needs {2 * needed} for a while)"
    return Check("quota", True, found)


def _endpoints(aws: Aws) -> Check:
    from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints

    ours = SageMakerEndpoints(aws).list()
    return Check("endpoints", True, f"{len(ours)} of ours{': ' if ours else ''}{', '.join(f'{one.name} ({one.state})' for one in ours)}")
