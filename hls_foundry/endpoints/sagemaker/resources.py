"""What a deployment consists of: names that follow from its content, and the bodies of the requests that make it. Pure: nothing is called.

    NAME                     the endpoint
    NAME-m-DIGEST            its model: image, archive, role, network, environment
    NAME-c-DIGEST            its configuration: the model, and where and how big it runs
    s3://BUCKET/PREFIX/endpoints/NAME/    its claim, and with multi_model models/DIGEST/TASK.tar.gz

Equal content has equal names, so that a deployment that was cut short is found again, and an update is another model or configuration.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModel.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hls_foundry.endpoints.settings import TAG, Autoscaling, SageMakerSettings
from hls_foundry.errors import EndpointError

VARIANT = "AllTraffic"
SERVERLESS_CONCURRENCY = 5
LONGEST_NAME, LONGEST_STEM = 63, 47
TAG_KIND, TAG_VERSION, TAG_SHA256 = f"{TAG}-kind", f"{TAG}-version", f"{TAG}-sha256"
TAG_HOME = f"{TAG}-home"  # where in S3 the endpoint's claim and copies lie
TAG_SCALING = f"{TAG}-autoscaling"  # of a configuration: going back to it brings its autoscaling back
TAG_PASSED = f"{TAG}-passed"  # of the endpoint: the configuration that last passed its check, which an update goes back to
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")


@dataclass(frozen=True)
class ModelVersion:
    """A published model version.

    `sha256`: of the archive. `bundle_sha256`: of its content (`Bundle.sha256`), which the container checks: it gets the archive unpacked.
    """

    uri: str
    sha256: str
    version: str
    bundle_sha256: str


@dataclass(frozen=True)
class Place:
    """A folder in S3; `prefix` ends with /."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @classmethod
    def parse(cls, uri: str) -> Place:
        """Raises EndpointError for what is not s3://BUCKET/PREFIX."""
        bucket, key = bucket_and_key(uri)
        return cls(bucket, key.rstrip("/") + "/")


@dataclass(frozen=True)
class Copy:
    """An archive that goes into a multi-model endpoint's folder."""

    source: str
    bucket: str
    key: str


@dataclass(frozen=True)
class Plan:
    """A deployment: the bodies of CreateModel and CreateEndpointConfig, and what goes with them."""

    endpoint: str
    kind: str
    home: Place
    model: dict[str, Any]
    config: dict[str, Any]
    copies: tuple[Copy, ...]
    autoscaling: Autoscaling | None
    tags: dict[str, str]  # of the endpoint

    @property
    def model_name(self) -> str:
        return str(self.model["ModelName"])

    @property
    def config_name(self) -> str:
        return str(self.config["EndpointConfigName"])


def plan_deployment(settings: SageMakerSettings, models: Mapping[str, ModelVersion], tags: Mapping[str, str], role_arn: str) -> Plan:
    """The deployment of `models` (by task: one, or those of a multi_model endpoint). `tags`: of this run, such as lineage ids.

    Raises EndpointError: models that the settings do not ask for, a name that SageMaker does not take, models that are not in S3.
    """
    name = endpoint_name(settings, models)
    first = models[min(models)]
    home = home_of(first.uri, name)
    digest = models_digest(models)
    copies: tuple[Copy, ...] = ()
    data_url = first.uri
    if settings.kind == "multi_model":
        folder = f"{home.prefix}models/{digest[:12]}/"
        copies = tuple(Copy(models[task].uri, home.bucket, f"{folder}{task}.tar.gz") for task in sorted(models))
        data_url = f"s3://{home.bucket}/{folder}"
    versions = " ".join(f"{task}={models[task].version}" for task in sorted(models)) if len(models) > 1 else first.version
    ours = {TAG: name, TAG_KIND: settings.kind, TAG_VERSION: versions, TAG_SHA256: digest, TAG_HOME: home.uri}
    shared = {**settings.tags, **tags, **ours}
    model = _named("ModelName", f"{stem(name)}-m", name, _model_body(settings, data_url, role_arn, models))
    config = _named("EndpointConfigName", f"{stem(name)}-c", name, _config_body(settings, str(model["ModelName"])))
    return Plan(
        endpoint=name,
        kind=settings.kind,
        home=home,
        model={**model, "Tags": tag_list(shared)},
        config={**config, "Tags": tag_list({**shared, TAG_SCALING: format_scaling(settings.autoscaling)})},
        copies=copies,
        autoscaling=settings.autoscaling,
        tags=shared,
    )


def endpoint_name(settings: SageMakerSettings, models: Mapping[str, ModelVersion]) -> str:
    """Raises EndpointError where `models` are not those that the settings ask for, or SageMaker does not take the name."""
    if settings.kind == "multi_model":
        if missing := sorted(set(settings.tasks) - set(models)):
            raise EndpointError(f"endpoint '{settings.name}' serves {', '.join(missing)} too, which has no model to deploy: train it first")
        if other := sorted(set(models) - set(settings.tasks)):
            raise EndpointError(f"endpoint '{settings.name}' does not serve {', '.join(other)}: add it to tasks in the stack file")
    elif len(models) != 1:
        raise EndpointError(f"endpoint '{settings.name}' ({settings.kind}) serves one model, not {len(models)}: use kind: multi_model")
    name = settings.name_for(min(models))
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", name):
        raise EndpointError(f"'{name}' cannot be a SageMaker endpoint's name: letters and digits, - between them, at most {LONGEST_NAME}")
    return name


def stem(name: str) -> str:
    """What the names of an endpoint's models and configurations begin with."""
    return name[:LONGEST_STEM].rstrip("-")


def models_digest(models: Mapping[str, ModelVersion]) -> str:
    """SHA-256 (hex) of what is deployed: the archive's own, or one over those of several tasks."""
    if len(models) == 1:
        return next(iter(models.values())).sha256
    return hashlib.sha256("".join(f"{task} {models[task].sha256}\n" for task in sorted(models)).encode()).hexdigest()


def home_of(archive: str, name: str) -> Place:
    """Where an endpoint keeps what it has in S3: beside the tasks' folders that `archive`, PREFIX/TASK/VERSION/model.tar.gz, lies in."""
    bucket, key = bucket_and_key(archive)
    prefix = "/".join(key.split("/")[:-3])
    return Place(bucket, f"{prefix}/endpoints/{name}/" if prefix else f"endpoints/{name}/")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Raises EndpointError for what is not s3://BUCKET/KEY."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise EndpointError(f"{uri} is not in S3, where SageMaker fetches models: set publish.bucket in the stack file, publish it again")
    return match[1], match[2]


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as the API takes them, with what it does not take in a value replaced by _."""
    return [{"Key": key, "Value": re.sub(r"[^\w\s.:/=+@-]", "_", value)[:256]} for key, value in sorted(tags.items())]


def format_scaling(scaling: Autoscaling | None) -> str:
    """Autoscaling as a tag's value: "none", or min, max and target."""
    return f"{scaling.min} {scaling.max} {scaling.target_invocations:g}" if scaling else "none"


def parse_scaling(text: str) -> Autoscaling | None:
    """The inverse of `format_scaling`; None for anything else."""
    match = re.fullmatch(r"(\d+) (\d+) (\S+)", text)
    return Autoscaling(min=int(match[1]), max=int(match[2]), target_invocations=float(match[3])) if match else None


def variant_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The variant of a configuration as it was created, or as DescribeEndpointConfig tells it."""
    variant: dict[str, Any] = config["ProductionVariants"][0]
    return variant


def keeps_instance_count(old: Mapping[str, Any], old_scaling: Autoscaling | None, plan: Plan) -> bool:
    """Whether an update leaves the number of instances as autoscaling has set it: where both configurations scale, on equal instances.

    Not from zero: a new configuration is checked on an instance of its own.
    """
    if plan.autoscaling is None or old_scaling is None or plan.autoscaling.min == 0 or old_scaling.min == 0:
        return False
    return variant_of(old).get("InstanceType") == variant_of(plan.config).get("InstanceType")


def _model_body(settings: SageMakerSettings, data_url: str, role_arn: str, models: Mapping[str, ModelVersion]) -> dict[str, Any]:
    multi = settings.kind == "multi_model"
    environment = {
        **settings.environment,
        "HLS_MODEL_SHA256": ",".join(sorted({model.bundle_sha256 for model in models.values()})),
        **({"HLS_S3_ALLOW": ",".join(settings.s3_allow)} if settings.s3_allow else {}),
        **({"SAGEMAKER_MULTI_MODEL": "true"} if multi else {}),
    }
    container = {
        "Image": settings.image,
        "Mode": "MultiModel" if multi else "SingleModel",
        "ModelDataUrl": data_url,
        "Environment": environment,
    }
    network = {"VpcConfig": {"SecurityGroupIds": list(settings.security_groups), "Subnets": list(settings.subnets)}}
    return {"PrimaryContainer": container, "ExecutionRoleArn": role_arn, **(network if settings.subnets else {})}


def _config_body(settings: SageMakerSettings, model_name: str) -> dict[str, Any]:
    key = {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
    body: dict[str, Any] = {"ProductionVariants": [_variant(settings, model_name)], **key}
    if settings.kind == "async" and settings.output_prefix:
        folder = settings.output_prefix.rstrip("/")
        asynchronous: dict[str, Any] = {"OutputConfig": {"S3OutputPath": f"{folder}/", "S3FailurePath": f"{folder}/failures/", **key}}
        if settings.max_concurrency:
            asynchronous["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": settings.max_concurrency}
        body["AsyncInferenceConfig"] = asynchronous
    if settings.data_capture:
        body["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": settings.data_capture.percent,
            "DestinationS3Uri": settings.data_capture.s3,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            **key,
        }
    return body


def _variant(settings: SageMakerSettings, model_name: str) -> dict[str, Any]:
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model_name, "InitialVariantWeight": 1.0}
    if settings.kind == "serverless":
        concurrency = settings.max_concurrency or SERVERLESS_CONCURRENCY
        return {**variant, "ServerlessConfig": {"MemorySizeInMB": settings.memory_mb, "MaxConcurrency": concurrency}}
    scaling = settings.autoscaling
    return {
        **variant,
        "InstanceType": settings.instance_type,
        "InitialInstanceCount": min(max(settings.instances, scaling.min, 1), scaling.max) if scaling else settings.instances,
        "ModelDataDownloadTimeoutInSeconds": settings.startup_s,
        "ContainerStartupHealthCheckTimeoutInSeconds": settings.startup_s,
    }


def _named(key: str, beginning: str, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """`body` under a name that follows from it."""
    content = json.dumps([endpoint, body], sort_keys=True)
    return {key: f"{beginning}-{hashlib.sha256(content.encode()).hexdigest()[:12]}", **body}
