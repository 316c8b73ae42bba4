"""Endpoints of the rehearsal for tests, made with plain boto3, as AWS's own examples do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from stacks.aws.rehearsal import Prepared, Rehearsal
from stacks.aws.rehearsal.credentials import KEY_ID, REGION, SECRET

WAIT_S = 60.0
Found = TypeVar("Found")


def until(look: Callable[[], Found]) -> Found:
    """What `look()` returns, once that is true; fails where it is not in time."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@lru_cache
def _client(service: str, url: str, retries: int) -> Any:
    """Made once for all tests: making one takes up to half a second on a busy machine. Imports late: every test session reads this."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "total_max_attempts": retries + 1})
    session = boto3.Session(aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name=REGION)
    return session.client(service, endpoint_url=url, config=config)


class Account:
    """The rehearsal's account as one test uses it: clients, and endpoints that end with the test. `prefix` begins all names."""

    def __init__(self, rehearsal: Rehearsal, prefix: str) -> None:
        self.rehearsal, self.prefix = rehearsal, prefix
        self.prepared: Prepared = rehearsal.prepare()
        self.sm, self.s3, self.logs = self.client("sagemaker"), self.client("s3"), self.client("logs")
        self.runtime = self.client("sagemaker-runtime")

    def client(self, service: str, *, retries: int = 4) -> Any:
        environment = self.rehearsal.environment
        own = f"AWS_ENDPOINT_URL_{service.upper().replace('-', '_')}"
        return _client(service, environment.get(own, environment["AWS_ENDPOINT_URL"]), retries)

    def put(self, key: str, body: bytes | Path) -> str:
        """An object under the test's prefix; its URI."""
        content = body.read_bytes() if isinstance(body, Path) else body
        self.s3.put_object(Bucket=self.prepared.bucket, Key=f"{self.prefix}/{key}", Body=content)
        return f"s3://{self.prepared.bucket}/{self.prefix}/{key}"

    def content(self, uri: str) -> bytes:
        """Of the object; empty while it is not there."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return b""

    def model(self, name: str, data: str, *, environment: Mapping[str, str] | None = None, mode: str = "SingleModel") -> str:
        name = f"{self.prefix}-{name}"
        container = {"Image": self.prepared.image, "Mode": mode, "ModelDataUrl": data, "Environment": dict(environment or {})}
        self.sm.create_model(ModelName=name, ExecutionRoleArn=self.prepared.role, PrimaryContainer=container)
        return name

    def config(self, name: str, model: str, *, serverless: dict[str, int] | None = None, **more: Any) -> str:
        name = f"{self.prefix}-{name}"
        size: dict[str, Any] = {"InstanceType": "ml.m6i.large", "InitialInstanceCount": more.pop("instances", 1)}
        variant = {"VariantName": "AllTraffic", "ModelName": model, **({"ServerlessConfig": serverless} if serverless else size)}
        variant |= more.pop("variant", {})
        self.sm.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **more)
        return name

    def create(self, name: str, config: str, **tags: str) -> str:
        name = f"{self.prefix}-{name}"
        given = [{"Key": key.replace("_", "-"), "Value": value} for key, value in tags.items()]
        self.sm.create_endpoint(EndpointName=name, EndpointConfigName=config, Tags=given)
        return name

    def wait(self, name: str, status: str = "InService") -> dict[str, Any]:
        """The endpoint's description once it is `status`; fails where it comes to rest in another."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found: dict[str, Any] = self.sm.describe_endpoint(EndpointName=name)
            if found["EndpointStatus"] == status:
                return found
            assert found["EndpointStatus"] not in ("Failed", "InService"), (found.get("FailureReason"), self.log_lines(name)[-3:])
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def gone(self, name: str) -> bool:
        """Whether the endpoint is gone, after a wait for it."""
        return until(lambda: name not in self.names())

    def names(self) -> list[str]:
        return [one["EndpointName"] for one in self.sm.list_endpoints(NameContains=self.prefix, MaxResults=100)["Endpoints"]]

    def delete_all(self) -> None:
        """Everything of SageMaker whose name begins with the prefix."""
        for name in self.names():
            status = until(lambda name=name: self._at_rest(name))
            if status != "Deleting":
                self.sm.delete_endpoint(EndpointName=name)
        for config in self.sm.list_endpoint_configs(NameContains=self.prefix, MaxResults=100)["EndpointConfigs"]:
            self.sm.delete_endpoint_config(EndpointConfigName=config["EndpointConfigName"])
        for model in self.sm.list_models(NameContains=self.prefix, MaxResults=100)["Models"]:
            self.sm.delete_model(ModelName=model["ModelName"])

    def _at_rest(self, name: str) -> str:
        """The endpoint's status; empty while it is being made or changed."""
        try:
            status = str(self.sm.describe_endpoint(EndpointName=name)["EndpointStatus"])
        except self.sm.exceptions.ClientError:
            return "Deleting"  # gone by now
        return status if status in ("InService", "Failed", "Deleting") else ""

    def log_lines(self, endpoint: str) -> list[str]:
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        streams = [one["logStreamName"] for one in self.logs.describe_log_streams(logGroupName=group)["logStreams"]]
        events = [self.logs.get_log_events(logGroupName=group, logStreamName=one, startFromHead=True)["events"] for one in streams]
        return [event["message"] for found in events for event in found]


@contextmanager
def account(rehearsal: Rehearsal, prefix: str) -> Iterator[Account]:
    """An account whose endpoints end with the body."""
    made = Account(rehearsal, prefix)
    try:
        yield made
    finally:
        made.delete_all()
