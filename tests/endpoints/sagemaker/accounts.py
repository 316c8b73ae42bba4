"""What a test does in an account of the control plane, and what is left in it afterwards."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import boto3

from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.resources import VARIANT, ModelVersion
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.endpoints.settings import SageMakerSettings
from stacks.aws.rehearsal.account import prepare
from stacks.aws.rehearsal.credentials import KEY_ID, REGION, SECRET
from tests.endpoints.sagemaker.states import States

QUICK = Pace(first=0.01, growth=1.2, most=0.1)
NAME = "scars"


class Unreached:
    """The invoker of tests without containers."""

    def invoke(self, body: bytes, **options: Any) -> Any:
        raise AssertionError("no container runs here")


class Account:
    """Clients, and what a deployment needs."""

    def __init__(self, environment: dict[str, str], states: States) -> None:
        self.environment, self.states = environment, states
        self._url = environment["AWS_ENDPOINT_URL"]
        self._session = boto3.Session(aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name=REGION)
        self._clients: dict[str, Any] = {}
        self.sm, self.s3, self.logs = self.client("sagemaker"), self.client("s3"), self.client("logs")
        self.prepared = prepare(self._url)
        self.aws = Aws()
        self.endpoints = SageMakerEndpoints(self.aws, pace=QUICK, provision_s=20, connect=lambda endpoint, aws, task: Unreached())

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._session.client(service, endpoint_url=self._url)
        return self._clients[service]

    def settings(self, kind: str = "realtime", **changes: Any) -> SageMakerSettings:
        needed: dict[str, Any] = {"name": NAME, "kind": kind, "role": self.prepared.role, "image": self.prepared.image, "startup_s": 60}
        if kind == "multi_model":
            needed["tasks"] = ("burn_scars", "flood")
        if kind == "async":
            needed["output_prefix"] = f"s3://{self.prepared.bucket}/results"
        return SageMakerSettings.model_validate({**needed, **changes})

    def published(self, version: str, task: str = "burn_scars") -> ModelVersion:
        """A model version in the bucket; its bytes are not those of a bundle, since nothing loads it here."""
        content = f"{task} {version}".encode()
        digest = hashlib.sha256(content).hexdigest()
        key = f"hls-foundry/{task}/{version}-{digest[:12]}/model.tar.gz"
        self.s3.put_object(Bucket=self.prepared.bucket, Key=key, Body=content)
        return ModelVersion(f"s3://{self.prepared.bucket}/{key}", digest, version, hashlib.sha256(content + b" bundle").hexdigest())

    def one(self, version: str) -> dict[str, ModelVersion]:
        return {"burn_scars": self.published(version)}

    def both(self, version: str) -> dict[str, ModelVersion]:
        return {task: self.published(version, task) for task in ("burn_scars", "flood")}

    def say(self, endpoint: str, *lines: str) -> None:
        """Lines in the log of the endpoint's container."""
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        self.logs.create_log_group(logGroupName=group)
        self.logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
        events = [{"timestamp": int(time.time() * 1000) + number, "message": line} for number, line in enumerate(lines)]
        self.logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=events)

    # -- what there is

    def left(self) -> dict[str, Any]:
        """Everything that deployments make, by sort; equal for equal deployments."""
        endpoints = {one["EndpointName"]: self._described(one["EndpointName"]) for one in self.sm.list_endpoints()["Endpoints"]}
        return {
            "endpoints": endpoints,
            "configs": sorted(one["EndpointConfigName"] for one in self.sm.list_endpoint_configs()["EndpointConfigs"]),
            "models": sorted(one["ModelName"] for one in self.sm.list_models()["Models"]),
            "objects": self.objects(),
            "scaling": self.scaling(),
            "alarms": sorted(one["AlarmName"] for one in self.client("cloudwatch").describe_alarms()["MetricAlarms"]),
        }

    def objects(self, prefix: str = "hls-foundry/endpoints/") -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.prepared.bucket, Prefix=prefix).get("Contents", [])
        return sorted(one["Key"].removeprefix(prefix) for one in found)

    def scaling(self) -> list[str]:
        client = self.client("application-autoscaling")
        targets = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        policies = client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        bounds = [f"{one['ResourceId']} {one['MinCapacity']}-{one['MaxCapacity']}" for one in targets]
        return sorted([*bounds, *(one["PolicyName"] for one in policies)])

    def _described(self, name: str) -> dict[str, Any]:
        found = self.sm.describe_endpoint(EndpointName=name)
        tags = {tag["Key"]: tag["Value"] for tag in self.sm.list_tags(ResourceArn=found["EndpointArn"])["Tags"]}
        return {"status": found["EndpointStatus"], "config": found["EndpointConfigName"], "tags": tags}

    def serves(self, name: str = NAME) -> str:
        """The archive that the endpoint's container has, or the folder of them."""
        config = self.sm.describe_endpoint_config(EndpointConfigName=self.sm.describe_endpoint(EndpointName=name)["EndpointConfigName"])
        model = self.sm.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
        return str(model["PrimaryContainer"]["ModelDataUrl"])

    def clear(self) -> None:
        """Remove everything, whoever made it."""
        scaling = self.client("application-autoscaling")
        for endpoint in self.sm.list_endpoints()["Endpoints"]:
            self.sm.delete_endpoint(EndpointName=endpoint["EndpointName"])
        for config in self.sm.list_endpoint_configs()["EndpointConfigs"]:
            self.sm.delete_endpoint_config(EndpointConfigName=config["EndpointConfigName"])
        for model in self.sm.list_models()["Models"]:
            self.sm.delete_model(ModelName=model["ModelName"])
        which = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
        for policy in scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]:
            scaling.delete_scaling_policy(**which, ResourceId=policy["ResourceId"], PolicyName=policy["PolicyName"])
        for target in scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]:
            scaling.deregister_scalable_target(**which, ResourceId=target["ResourceId"])
        alarms = [one["AlarmName"] for one in self.client("cloudwatch").describe_alarms()["MetricAlarms"]]
        if alarms:
            self.client("cloudwatch").delete_alarms(AlarmNames=alarms)
        for group in self.logs.describe_log_groups()["logGroups"]:
            self.logs.delete_log_group(logGroupName=group["logGroupName"])
        bucket = self.prepared.bucket
        for found in self.s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            self.s3.delete_object(Bucket=bucket, Key=found["Key"])


def resource(name: str = NAME) -> str:
    """The name that autoscaling has for the endpoint's variant."""
    return f"endpoint/{name}/variant/{VARIANT}"


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
