"""SageMaker endpoints: deployed, updated in place, listed and deleted. All that is ours carries the tag `hls-foundry: NAME`, and nothing
without it is ever touched.

    hls-foundry          the endpoint's name                hls-foundry-version   of the model, or TASK=VERSION of several
    hls-foundry-kind     realtime, multi_model, …           hls-foundry-sha256    of what is deployed
    hls-foundry-home     s3://… of its claim and copies     hls-foundry-passed    the configuration that last passed its check
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from hls_foundry.endpoints.aws import Aws, aws_errors
from hls_foundry.endpoints.client import Invoker
from hls_foundry.endpoints.sagemaker.claim import claimed
from hls_foundry.endpoints.sagemaker.control import ControlPlane
from hls_foundry.endpoints.sagemaker.deployment import Deployment, EndpointChange, Waiting
from hls_foundry.endpoints.sagemaker.endpoint import ASYNC_PATH, SYNC_PATH, SageMakerEndpoint
from hls_foundry.endpoints.sagemaker.image import pinned
from hls_foundry.endpoints.sagemaker.resources import (
    TAG_HOME,
    TAG_KIND,
    TAG_SHA256,
    TAG_VERSION,
    ModelVersion,
    Place,
    Plan,
    plan_deployment,
)
from hls_foundry.endpoints.sagemaker.waiting import Pace, Report
from hls_foundry.endpoints.settings import TAG, SageMakerSettings
from hls_foundry.errors import EndpointError

__all__ = ["Check", "ModelVersion", "SageMakerEndpoint", "SageMakerEndpoints"]

Check = Callable[[str, Invoker], None]
"""Called with a task and an invoker of its model on the new endpoint; raises where the endpoint must not stay."""

Connect = Callable[[SageMakerEndpoint, Aws, str], Invoker]
"""An invoker of an endpoint's model of a task."""

PROVISION_S = 1500.0
"""What SageMaker may need beyond the container's start: instances, the image, taking the old fleet down."""


class SageMakerEndpoints:
    """The endpoints of one account and region. `connect`: how checks call them."""

    def __init__(self, aws: Aws, *, pace: Pace | None = None, provision_s: float = PROVISION_S, connect: Connect | None = None) -> None:
        self.aws = aws
        self._pace, self._provision_s, self._connect = pace or Pace(), provision_s, connect or _invoker

    def deploy(
        self,
        settings: SageMakerSettings,
        models: Mapping[str, ModelVersion],
        *,
        tags: Mapping[str, str] | None = None,
        check: Check | None = None,
        progress: Report | None = None,
    ) -> SageMakerEndpoint:
        """Bring the endpoint of `settings` to serve `models` (by task), and return when it does and `check` has passed for every task.

        Where it does not come up, or the check fails, the configuration before answers again and the new one is removed; on a first
        deployment nothing is left. A run that was killed is completed by the next. `tags`: such as lineage ids. `progress` is told
        SageMaker's state and the seconds.

        Raises EndpointError (one line): an image that ECR does not have, an endpoint of that name that is not ours, another run that
        changes it, what SageMaker refuses, a failed creation with its reason and the container's last words, no end in time; and what
        `check` raises.
        """
        settings = settings.model_copy(update={"image": pinned(self.aws, settings.image)})
        plan = plan_deployment(settings, models, tags or {}, self._role(settings.role))
        waiting = Waiting(settings.startup_s + self._provision_s, self._pace, progress)
        with claimed(self.aws.client("s3"), plan.endpoint, self._home(plan)) as claim:
            control = ControlPlane(self.aws.client("sagemaker"), allowed=claim.check)

            def checked() -> None:
                if check:
                    endpoint = self.get(plan.endpoint)
                    for task in sorted(models):
                        check(task, self._connect(endpoint, self.aws, task))

            Deployment(self.aws, plan, control, waiting, checked).run()
            return self.get(plan.endpoint)

    def list(self) -> list[SageMakerEndpoint]:
        """Ours, by name. Raises EndpointError."""
        found = (self._described(name) for name in self._control().endpoint_names())
        return [endpoint for endpoint in found if endpoint is not None]

    def get(self, name: str) -> SageMakerEndpoint:
        """`name` may have _ for -, as tasks have. Raises EndpointError where there is none of ours of that name."""
        endpoint = self._described(name.replace("_", "-"))
        if endpoint is None:
            known = ", ".join(endpoint.name for endpoint in self.list()) or "none"
            raise EndpointError(f"no endpoint '{name}' of ours in {self.aws.region} (there are: {known})")
        return endpoint

    def delete(self, name: str, *, objects: bool = False, progress: Report | None = None) -> None:
        """Remove the endpoint, its autoscaling, configurations and models, and with `objects` a multi-model endpoint's copies in S3.

        Returns when it is gone. What an interrupted deletion left is removed too. Published archives, results and logs stay.
        Raises EndpointError (one line).
        """
        name = name.replace("_", "-")
        control = self._control()
        tags = self._tags_of_anything(control, name)
        if not tags:
            self.get(name)  # raises, naming those that there are
        home = Place.parse(tags[TAG_HOME])
        with self._claimed_if_possible(name, home) as allowed:
            control = ControlPlane(self.aws.client("sagemaker"), allowed=allowed)
            change = EndpointChange(self.aws, name, control, Waiting(2 * self._provision_s, self._pace, progress))
            change.remove_endpoint(tags.get(TAG_KIND, ""))
            if objects:
                change.remove_copies(home, keep=None)
            change.remove_resources(keep=None)

    # -- inside

    def _control(self) -> ControlPlane:
        return ControlPlane(self.aws.client("sagemaker"))

    def _home(self, plan: Plan) -> Place:
        """Where the claim lies: where the endpoint says, if it exists and its models come from another bucket now."""
        control = self._control()
        description = control.endpoint(plan.endpoint)
        tags = control.tags(description["EndpointArn"]) if description else {}
        return Place.parse(tags[TAG_HOME]) if tags.get(TAG) == plan.endpoint and TAG_HOME in tags else plan.home

    def _tags_of_anything(self, control: ControlPlane, name: str) -> dict[str, str]:
        """The tags of the endpoint, else of a configuration or model that it left; none where there is nothing. Raises EndpointError."""
        description = control.endpoint(name)
        if description is not None:
            tags = control.tags(description["EndpointArn"])
            if tags.get(TAG) != name:
                raise EndpointError(f"endpoint '{name}' was not made by HLS Foundry (it has no tag {TAG}={name}): it is left alone")
            return tags
        left = [*control.configs_of(name), *control.models_of(name)]
        return left[0].tags if left else {}

    @contextmanager
    def _claimed_if_possible(self, name: str, home: Place) -> Iterator[Callable[[], None]]:
        """The claim's check; none where the bucket is gone, since then nobody can be deploying from it."""
        with aws_errors(f"s3://{home.bucket}"):
            there = _bucket_exists(self.aws.client("s3"), home.bucket)
        if not there:
            yield lambda: None
            return
        with claimed(self.aws.client("s3"), name, home) as claim:
            yield claim.check

    def _described(self, name: str) -> SageMakerEndpoint | None:
        """The endpoint as it is; None where there is none, or it is not ours."""
        control = self._control()
        description = control.endpoint(name)
        if description is None:
            return None
        tags = control.tags(description["EndpointArn"])
        if tags.get(TAG) != name:
            return None
        config = control.config(description["EndpointConfigName"])
        # The configuration knows what really answers; the endpoint's own tags are those of the last deployment that passed.
        told = {**tags, **(control.tags(config["EndpointConfigArn"]) if config else {})}
        return self._endpoint(description, told, (config or {}).get("AsyncInferenceConfig", {}))

    def _endpoint(self, description: Mapping[str, Any], tags: Mapping[str, str], asynchronous: Mapping[str, Any]) -> SageMakerEndpoint:
        name, kind, version = description["EndpointName"], tags.get(TAG_KIND, ""), tags.get(TAG_VERSION, "")
        runtime = self.aws.client("sagemaker-runtime").meta.endpoint_url.rstrip("/")
        several = kind == "multi_model"
        return SageMakerEndpoint(
            name=name,
            url=f"{runtime}/endpoints/{name}/{ASYNC_PATH if kind == 'async' else SYNC_PATH}",
            model_version=version,
            sha256=tags.get(TAG_SHA256, ""),
            since=description["LastModifiedTime"].astimezone(UTC).isoformat(timespec="seconds"),
            kind=kind,
            arn=description["EndpointArn"],
            region=self.aws.region,
            status=description["EndpointStatus"],
            config=description["EndpointConfigName"],
            home=tags.get(TAG_HOME, ""),
            output=asynchronous.get("OutputConfig", {}).get("S3OutputPath", ""),
            models=dict(part.split("=", 1) for part in version.split() if "=" in part) if several else {},
            problem=str(description.get("FailureReason", "")),
        )

    def _role(self, role: str) -> str:
        """The ARN of a role given by name. Raises EndpointError."""
        if role.startswith("arn:"):
            return role
        region = self.aws.region
        partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
        return f"arn:{partition}:iam::{self.aws.account()}:role/{role}"


def _bucket_exists(s3: Any, bucket: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchBucket"):
            return False
        raise
    return True


def _invoker(endpoint: SageMakerEndpoint, aws: Aws, task: str) -> Invoker:
    from hls_foundry.endpoints.sagemaker.invoker import invoker_for

    return invoker_for(endpoint, aws, task=task)
