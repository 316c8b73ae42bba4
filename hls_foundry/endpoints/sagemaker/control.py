"""SageMaker's control plane as deployments use it: nothing that lacks our tag is changed, what is there already is not made again.

Refusals are told apart by their text, since SageMaker answers ValidationException to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from hls_foundry.endpoints.aws import aws_errors, error_code
from hls_foundry.endpoints.sagemaker.resources import stem, tag_list
from hls_foundry.endpoints.settings import TAG
from hls_foundry.errors import EndpointError

CONSISTENT_S = (1.0, 2.0, 4.0, 8.0)
"""What was just made may not be found for a moment (CreateEndpoint's page says so): tried again after these seconds."""


class Owned(NamedTuple):
    """A model or configuration of ours."""

    name: str
    tags: dict[str, str]


class ControlPlane:
    """`client`: boto3's of sagemaker. `allowed` is called before every change, and may raise."""

    def __init__(self, client: Any, *, allowed: Callable[[], None] = lambda: None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._allowed, self._sleep = client, allowed, sleep

    # -- what there is

    def endpoint(self, name: str) -> dict[str, Any] | None:
        """DescribeEndpoint; None where there is none. Raises EndpointError."""
        return self._described(name, lambda: self._client.describe_endpoint(EndpointName=name))

    def config(self, name: str) -> dict[str, Any] | None:
        """DescribeEndpointConfig; None where there is none. Raises EndpointError."""
        return self._described(name, lambda: self._client.describe_endpoint_config(EndpointConfigName=name))

    def model(self, name: str) -> dict[str, Any] | None:
        """DescribeModel; None where there is none. Raises EndpointError."""
        return self._described(name, lambda: self._client.describe_model(ModelName=name))

    def tags(self, arn: str) -> dict[str, str]:
        """Raises EndpointError."""
        with aws_errors(_last(arn)):
            pages = list(self._client.get_paginator("list_tags").paginate(ResourceArn=arn))
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    def endpoint_names(self) -> list[str]:
        """All of the account and region, ours and others'. Raises EndpointError."""
        with aws_errors("SageMaker endpoints"):
            pages = list(self._client.get_paginator("list_endpoints").paginate(SortBy="Name", SortOrder="Ascending"))
        return [found["EndpointName"] for page in pages for found in page["Endpoints"]]

    def configs_of(self, endpoint: str) -> list[Owned]:
        """The endpoint's configurations, by name and tag. Raises EndpointError."""
        return self._owned(endpoint, "list_endpoint_configs", "EndpointConfig", f"{stem(endpoint)}-c-")

    def models_of(self, endpoint: str) -> list[Owned]:
        """The endpoint's models, by name and tag. Raises EndpointError."""
        return self._owned(endpoint, "list_models", "Model", f"{stem(endpoint)}-m-")

    # -- changes

    def ensure_model(self, endpoint: str, body: Mapping[str, Any]) -> None:
        """Make the model unless it is there. Raises EndpointError, also for one of that name that is not ours."""
        name = body["ModelName"]
        found = self.model(name)
        if found is None:
            self._made(name, lambda: self._client.create_model(**body))
        else:
            self._refuse_others(endpoint, name, found["ModelArn"])

    def ensure_config(self, endpoint: str, body: Mapping[str, Any]) -> None:
        """Make the configuration unless it is there. Raises EndpointError, also for one of that name that is not ours."""
        name = body["EndpointConfigName"]
        found = self.config(name)
        if found is None:
            self._made(name, lambda: self._once_consistent(lambda: self._client.create_endpoint_config(**body)))
        else:
            self._refuse_others(endpoint, name, found["EndpointConfigArn"])
            self._tag(name, found["EndpointConfigArn"], body["Tags"])

    def create_endpoint(self, name: str, config: str, tags: Mapping[str, str]) -> None:
        """Raises EndpointError, also where somebody has just made one of that name."""
        request = {"EndpointName": name, "EndpointConfigName": config, "Tags": tag_list(tags)}
        if not self._made(name, lambda: self._once_consistent(lambda: self._client.create_endpoint(**request))):
            raise EndpointError(f"endpoint '{name}' was made by somebody else in this moment: run again once that has ended")

    def update_endpoint(self, name: str, config: str, *, keep_count: bool) -> None:
        """Start an update. `keep_count`: with as many instances as there are now. Raises EndpointError."""
        request: dict[str, Any] = {"EndpointName": name, "EndpointConfigName": config}
        if keep_count:
            excluded = [{"VariantPropertyType": kind} for kind in ("DesiredWeight", "DataCaptureConfig")]
            request |= {"RetainAllVariantProperties": True, "ExcludeRetainedVariantProperties": excluded}
        self._allowed()
        with aws_errors(f"endpoint '{name}'"), _readable(name):
            self._once_consistent(lambda: self._client.update_endpoint(**request))

    def tag_endpoint(self, arn: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags. Raises EndpointError."""
        self._tag(_last(arn), arn, tag_list(tags))

    def delete_endpoint(self, name: str) -> None:
        """Start the deletion; nothing happens where it is gone. Raises EndpointError."""
        self._deleted(name, lambda: self._client.delete_endpoint(EndpointName=name))

    def delete_config(self, name: str) -> None:
        """Nothing happens where it is gone. Raises EndpointError."""
        self._deleted(name, lambda: self._client.delete_endpoint_config(EndpointConfigName=name))

    def delete_model(self, name: str) -> None:
        """Nothing happens where it is gone. Raises EndpointError."""
        self._deleted(name, lambda: self._client.delete_model(ModelName=name))

    # -- inside

    def _described(self, name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with aws_errors(name):
            try:
                return call()
            except ClientError as error:
                if _says(error, "could not find"):
                    return None
                raise

    def _owned(self, endpoint: str, operation: str, noun: str, beginning: str) -> list[Owned]:
        with aws_errors(f"endpoint '{endpoint}'"):
            pages = list(self._client.get_paginator(operation).paginate(NameContains=beginning))
        found = sorted((item[f"{noun}Name"], item[f"{noun}Arn"]) for page in pages for item in page[f"{noun}s"])
        owned = [Owned(name, self.tags(arn)) for name, arn in found if name.startswith(beginning)]
        return [item for item in owned if item.tags.get(TAG) == endpoint]

    def _made(self, name: str, create: Callable[[], Any]) -> bool:
        """Whether `create` made it; False where one of that name is there already."""
        from botocore.exceptions import ClientError

        self._allowed()
        with aws_errors(name):
            try:
                create()
            except ClientError as error:
                if _says(error, "already existing"):
                    return False
                raise
        return True

    def _once_consistent(self, call: Callable[[], Any]) -> Any:
        """`call` again where what it refers to is not found yet."""
        from botocore.exceptions import ClientError

        for seconds in CONSISTENT_S:
            try:
                return call()
            except ClientError as error:
                if not _says(error, "could not find"):
                    raise
            self._sleep(seconds)
        return call()

    def _refuse_others(self, endpoint: str, name: str, arn: str) -> None:
        if self.tags(arn).get(TAG) != endpoint:
            raise EndpointError(f"{name} was not made for endpoint '{endpoint}' (it has no tag {TAG}={endpoint}): it is left alone")

    def _tag(self, name: str, arn: str, tags: list[dict[str, str]]) -> None:
        self._allowed()
        with aws_errors(name):
            self._client.add_tags(ResourceArn=arn, Tags=tags)

    def _deleted(self, name: str, call: Callable[[], Any]) -> None:
        from botocore.exceptions import ClientError

        self._allowed()
        with aws_errors(name):
            try:
                call()
            except ClientError as error:
                if not _says(error, "could not find"):
                    raise


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """SageMaker's refusal to update what is being updated, in our words."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if _says(error, "in-progress"):
            raise EndpointError(f"endpoint '{name}' is being changed by somebody else: run again once it is InService") from None
        raise


def _says(error: Any, words: str) -> bool:
    return error_code(error) == "ValidationException" and words in str(error.response["Error"].get("Message", "")).lower()


def _last(arn: str) -> str:
    return arn.rpartition("/")[2]
