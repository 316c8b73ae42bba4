"""What a stack file says of endpoints and of publishing, as typed data that steps can take."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Kind = Literal["realtime", "multi_model", "async", "serverless"]
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
TAG = "hls-foundry"
"""Tag key of everything that we create; its value is the endpoint's name."""

NAMES: dict[Kind, str] = {
    "realtime": "hls-{task}",
    "async": "hls-{task}-async",
    "serverless": "hls-{task}-serverless",
    "multi_model": "hls-all-tasks",
}
"""Names where none is given: one a kind, since SageMaker does not turn an endpoint of one kind into another."""

OWN_VARIABLES = ("HLS_MODEL_SHA256", "HLS_S3_ALLOW", "SM_MODEL_DIR", "SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_MULTI_MODEL")
"""Variables of the container that follow from the deployment."""


def _words(value: object) -> object:
    """Text from a variable, such as `a, b`, as the list it stands for."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


BucketName = Annotated[str, Field(pattern=rf"^{BUCKET}$")]
S3Folder = Annotated[str, Field(pattern=rf"^s3://{BUCKET}(/[^\s]*)?$", description="s3://BUCKET/PREFIX")]
Names = Annotated[tuple[str, ...], BeforeValidator(_words)]
KmsKey = Annotated[str, Field(pattern=r"^[a-zA-Z0-9:/_-]+$", max_length=2048, description="id, ARN or alias/NAME of a KMS key")]


class Part(BaseModel):
    """Rejects keys that it does not know. Empty text counts as unset: what a variable of the stack file left empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item != ""} if isinstance(value, dict) else value


class AwsSettings(Part):
    """Who we are to AWS. Without anything: the usual chain (environment, profile, SSO, the instance's or container's role)."""

    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")] | None = Field(
        None, description="none: AWS_REGION or the profile's"
    )
    profile: str | None = Field(None, description="of ~/.aws/config, SSO profiles too; none: AWS_PROFILE")
    role_arn: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$")] | None = Field(
        None, description="role to assume on top of that"
    )
    external_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2, max_length=1224)] | None = Field(
        None, repr=False, description="what the role's trust asks for; AWS does not count it as a secret, and it is in the lineage"
    )
    session_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@-]{2,64}$")] = Field(
        "hls-foundry", description="in CloudTrail, of the assumed role"
    )

    @model_validator(mode="after")
    def _external_id_has_a_role(self) -> AwsSettings:
        if self.external_id and not self.role_arn:
            raise ValueError("external_id is for role_arn, which is not given")
        return self


class PublishSettings(Part):
    """Where `publish` puts model.tar.gz: either a folder, or a bucket of S3."""

    folder: str | None = Field(None, description="a folder; relative ones count from the repository")
    bucket: BucketName | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()/-]{1,512}$")] = Field("hls-foundry", description="of the keys in the bucket")
    kms_key: KmsKey | None = Field(None, description="encrypts the objects; none: the bucket's own encryption")
    aws: AwsSettings = AwsSettings()

    @model_validator(mode="after")
    def _one_place(self) -> PublishSettings:
        if (self.folder is None) == (self.bucket is None):
            raise ValueError("give exactly one of folder and bucket")
        if self.folder is not None and (self.kms_key is not None or self.aws != AwsSettings()):
            raise ValueError("kms_key and aws are for a bucket, not for a folder")
        return self

    @property
    def place(self) -> str:
        """The folder as given, or s3://BUCKET/PREFIX."""
        return self.folder if self.folder is not None else f"s3://{self.bucket}/{self.prefix.strip('/')}"


class _Target(Part):
    @model_validator(mode="before")
    @classmethod
    def _says_its_target(cls, value: Any) -> Any:
        """Count `target` as given: ZenML keeps a parameter without the fields that were left at their defaults."""
        return {"target": cls.model_fields["target"].default, **value} if isinstance(value, dict) else value


class _OnThisMachine(_Target):
    """What processes and containers have in common. `{task}` in the name is filled with the task's name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9{][a-zA-Z0-9{}_-]{0,62}$")] = "{task}"
    kind: Literal["realtime"] = "realtime"
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="none: a free one, kept over redeployments")

    def name_for(self, task: str) -> str:
        return self.name.replace("{task}", task)


class LocalSettings(_OnThisMachine):
    """A process on this machine."""

    target: Literal["local"] = "local"


class ContainerSettings(_OnThisMachine):
    """A container on this machine, of docker or podman."""

    target: Literal["container"] = "container"
    image: Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$")] | None = Field(
        None, description="name or digest; none: hls-foundry-serve of this version, as make images calls it"
    )
    engine: Literal["docker", "podman"] | None = Field(None, description="none: the first that answers")
    memory_mb: Annotated[int, Field(ge=256)] | None = Field(None, description="it ends with more; none: 2 GB and four times the bundle")
    cpus: Annotated[float, Field(gt=0)] | None = Field(None, description="none: all")


class Autoscaling(Part):
    """Target tracking on invocations (async: on the backlog) per instance."""

    min: Annotated[int, Field(ge=0)] = Field(1, description="instances; 0 only for async")
    max: Annotated[int, Field(ge=1)] = 2
    target_invocations: Annotated[float, Field(gt=0)] = Field(
        60.0, description="a minute and instance; async: requests waiting an instance"
    )

    @model_validator(mode="after")
    def _order(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class DataCapture(Part):
    """Requests and replies kept in S3."""

    s3: S3Folder
    percent: Annotated[int, Field(ge=1, le=100)] = 100


class SageMakerSettings(_Target):
    """A SageMaker endpoint. Limits are those of CreateModel and CreateEndpointConfig.

    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html
    """

    target: Literal["sagemaker"] = "sagemaker"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9{][a-zA-Z0-9{}_-]{0,62}$")] = Field(
        description="`{task}` is filled with the task's name, _ becomes -; none: hls-{task}, with the kind behind it (see NAMES)"
    )
    kind: Kind = "realtime"
    role: Annotated[str, Field(pattern=r"^(arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+|[A-Za-z0-9_+=,.@-]{1,64})$")] = Field(
        description="that the container runs as: ARN or name"
    )
    image: Annotated[
        str,
        Field(
            pattern=r"^[0-9]{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[a-z0-9][a-z0-9._/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})$"
        ),
    ] = Field(description="of the serving container in ECR, with its tag or digest")
    aws: AwsSettings = AwsSettings()
    instance_type: Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")] = Field("ml.m5.large", description="not for serverless")
    instances: Annotated[int, Field(ge=1)] = Field(1, description="to start with; not for serverless")
    memory_mb: Annotated[int, Field(ge=1024, le=6144, multiple_of=1024)] = Field(4096, description="serverless only")
    max_concurrency: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="requests at a time: serverless of the endpoint (at most 200), async of an instance"
    )
    autoscaling: Autoscaling | None = None
    data_capture: DataCapture | None = None
    kms_key: KmsKey | None = Field(None, description="encrypts the instances' volumes and what async writes")
    subnets: Names = ()
    security_groups: Names = ()
    tags: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict, description="of the container: see docs/serving.md")
    s3_allow: Annotated[tuple[BucketName, ...], BeforeValidator(_words)] = Field(
        (), description="buckets that the container may read images from"
    )
    tasks: Names = Field((), description="multi_model only: whose models are behind the endpoint")
    output_prefix: S3Folder | None = Field(None, description="async only: where results go")
    startup_s: Annotated[int, Field(ge=60, le=3600)] = Field(900, description="seconds for the container to load its model")

    def name_for(self, task: str) -> str:
        return self.name.replace("{task}", task).replace("_", "-")

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("name"):
            return value
        return {**value, "name": NAMES.get(value.get("kind") or "realtime", NAMES["realtime"])}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> SageMakerSettings:
        problems = [
            (
                self.kind == "multi_model" and "{task}" in self.name,
                "a multi_model endpoint serves several tasks: name must do without {task}",
            ),
            (self.kind == "multi_model" and not self.tasks, "multi_model needs tasks: whose models are behind the endpoint"),
            (self.kind == "async" and not self.output_prefix, "async needs output_prefix: where in S3 results go"),
            (self.kind in ("realtime", "multi_model") and self.max_concurrency is not None, f"max_concurrency is not for {self.kind}"),
            (self.autoscaling is not None and self.autoscaling.min == 0 and self.kind != "async", "autoscaling.min: 0 is only for async"),
            (self.kind == "serverless" and self.autoscaling is not None, "serverless scales by itself: leave out autoscaling"),
            (self.kind == "serverless" and self.data_capture is not None, "serverless has no data_capture: choose another kind"),
            (self.kind == "serverless" and bool(self.subnets), "serverless runs outside a VPC: leave out subnets and security_groups"),
            (self.kind == "serverless" and (self.max_concurrency or 0) > 200, "max_concurrency of serverless is at most 200"),
            (bool(self.subnets) != bool(self.security_groups), "give both subnets and security_groups, or neither"),
        ]
        for wrong, message in problems:
            if wrong:
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> SageMakerSettings:
        for key, value in self.tags.items():
            if key == TAG or key.lower().startswith("aws:") or not re.fullmatch(r"[\w\s.:/=+@-]{1,128}", key) or len(value) > 256:
                raise ValueError(f"tags: {key!r:.80} is reserved (aws:…, {TAG}), or longer than AWS takes (128, its value 256)")
        for name in self.environment:
            if name.upper().startswith(("AWS_ACCESS", "AWS_SECRET", "AWS_SESSION", "AWS_SECURITY")):
                raise ValueError(f"environment: {name}: no credentials here, the container has those of its role")
            if name in OWN_VARIABLES or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]{0,1023}", name):
                raise ValueError(f"environment: {name!r:.80} follows from the deployment, or is no name of a variable")
        return self


def _target(value: Any) -> Any:
    return value.get("target", "local") if isinstance(value, dict) else getattr(value, "target", None)


EndpointSettings = Annotated[
    Annotated[LocalSettings, Tag("local")]
    | Annotated[ContainerSettings, Tag("container")]
    | Annotated[SageMakerSettings, Tag("sagemaker")],
    Discriminator(_target, custom_error_type="unknown_target", custom_error_message="target must be local, container or sagemaker"),
]
"""Where `deploy` goes, told apart by `target` (default local). ZenML takes it as a parameter's type."""

TARGETS = ("local", "container", "sagemaker")
"""The tags of that union; pydantic names them among the places of an error."""
