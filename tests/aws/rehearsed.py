"""Endpoints of the rehearsal for tests, made with plain boto3, as AWS's own examples do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from stacks.aws.rehearsal import Prepared, Rehearsal

WAIT_S = 60.0


class Account:
    """The rehearsal's account as one test uses it: clients, and endpoints that end with the test. `prefix` begins all names."""

    def __init__(self, rehearsal: Rehearsal, prefix: str) -> None:
        self.rehearsal, self.prefix = rehearsal, prefix
        self.prepared: Prepared = rehearsal.prepare()
        environment = rehearsal.environment
        self._session = boto3.Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_REGION"],
        )
        self.sm, self.s3, self.logs = self.client("sagemaker"), self.client("s3"), self.client("logs")
        self.runtime = self.client("sagemaker-runtime")

    def client(self, service: str, **options: Any) -> Any:
        environment = self.rehearsal.environment
        own = f"AWS_ENDPOINT_URL_{service.upper().replace('-', '_')}"
        return self._session.client(service, endpoint_url=environment.get(own, environment["AWS_ENDPOINT_URL"]), **options)

    def put(self, key: str, body: bytes | Path) -> str:
        """An object under the test's prefix; its URI."""
        content = body.read_bytes() if isinstance(body, Path) else body
        self.s3.put_object(Bucket=self.prepared.bucket, Key=f"{self.prefix}/{key}", Body=content)
        return f"s3://{self.prepared.bucket}/{self.prefix}/{key}"

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
            assert found["EndpointStatus"] not in ("Failed", "InService"), found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def gone(self, name: str) -> bool:
        """Whether the endpoint is gone, after a wait for it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if name not in self.names():
                return True
            time.sleep(0.05)
        return False

    def names(self) -> list[str]:
        return [one["EndpointName"] for one in self.sm.list_endpoints(NameContains=self.prefix, MaxResults=100)["Endpoints"]]

    def delete_all(self) -> None:
        """Everything of SageMaker whose name begins with the prefix."""
        for name in self.names():
            deadline = time.monotonic() + WAIT_S
            while self.sm.describe_endpoint(EndpointName=name)["EndpointStatus"] not in ("InService", "Failed", "Deleting"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if self.sm.describe_endpoint(EndpointName=name)["EndpointStatus"] != "Deleting":
                self.sm.delete_endpoint(EndpointName=name)
        for config in self.sm.list_endpoint_configs(NameContains=self.prefix, MaxResults=100)["EndpointConfigs"]:
            self.sm.delete_endpoint_config(EndpointConfigName=config["EndpointConfigName"])
        for model in self.sm.list_models(NameContains=self.prefix, MaxResults=100)["Models"]:
            self.sm.delete_model(ModelName=model["ModelName"])

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
