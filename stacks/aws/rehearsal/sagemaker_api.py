"""SageMaker's control plane as moto has it, with what it lacks: states that follow the containers, updates, refusals of what AWS refuses.

The runtime knows the state of each endpoint: it is asked whenever one is described, and told of each that is made, changed or deleted.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, ClassVar

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import utcnow
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import FakeEndpoint, Model, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

from hls_foundry.errors import EndpointError
from stacks.aws.rehearsal import checks
from stacks.aws.rehearsal.credentials import ACCOUNT
from stacks.aws.rehearsal.faults import FAIL_TAG, SECONDS_TAG
from stacks.aws.rehearsal.link import call
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.quotas import INSTANCES

CHANGING = ("Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating")


class ResourceLimitExceeded(ServiceException):
    """As AWS answers where an account's quota does not suffice."""

    code = "ResourceLimitExceeded"


class ServiceUnavailable(ServiceException):
    """The runtime has died: `rehearsal up` starts it again."""

    code = "ServiceUnavailable"


class SageMakerApi(SageMakerResponse):
    """One request. Methods are named after SageMaker's operations, as moto calls them; each raises what AWS answers."""

    runtime_url: ClassVar[str] = ""
    _lock: ClassVar[threading.RLock] = threading.RLock()  # moto answers on several threads and has none of its own

    _sent: ClassVar[dict[tuple[str, str, str], Order]] = {}

    # -- models

    def create_model(self) -> ActionResult:
        with self._lock:
            name = self._get_param("ModelName")
            if name in self.sagemaker_backend._models:
                raise ValidationError(message=f'Cannot create already existing model "{self._arn("model", name)}".')
            containers = [self._get_param("PrimaryContainer"), *(self._get_param("Containers") or [])]
            role = self._get_param("ExecutionRoleArn")
            checks.check_model(role, [held for held in containers if held], self.current_account, self.region)
            return super().create_model()

    def describe_model(self) -> ActionResult:
        return ActionResult(_without_empty(self.sagemaker_backend.describe_model(self._get_param("ModelName")).response_object))

    def list_models(self) -> ActionResult:
        part = self._get_param("NameContains") or ""
        models = [held for held in list(self.sagemaker_backend._models.values()) if part in held.model_name]
        models.sort(key=lambda held: held.model_name if self._get_param("SortBy") == "Name" else held.creation_time)
        if self._get_param("SortOrder") != "Ascending":
            models.reverse()
        start, size = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults") or 100)
        listed = [{"ModelName": held.model_name, "ModelArn": held.arn, "CreationTime": held.creation_time} for held in models]
        following = {"NextToken": str(start + size)} if len(listed) > start + size else {}
        return ActionResult({"Models": listed[start : start + size], **following})

    # -- endpoint configurations

    def create_endpoint_config(self) -> ActionResult:
        with self._lock:
            name = self._get_param("EndpointConfigName")
            if name in self.sagemaker_backend.endpoint_configs:
                arn = self._arn("endpoint-config", name)
                raise ValidationError(message=f'Cannot create already existing endpoint configuration "{arn}".')
            variants = self._get_param("ProductionVariants")
            only_instances = {"AsyncInferenceConfig", "DataCaptureConfig"} & {key for key, value in self._get_params().items() if value}
            checks.check_variants(variants, self.sagemaker_backend._models, sorted(only_instances))
            return super().create_endpoint_config()

    def describe_endpoint_config(self) -> ActionResult:
        return ActionResult(_without_empty(self.sagemaker_backend.describe_endpoint_config(self._get_param("EndpointConfigName"))))

    # -- endpoints

    def create_endpoint(self) -> ActionResult:
        with self._lock:
            name = self._get_param("EndpointName")
            if name in self.sagemaker_backend.endpoints:
                self._refresh()  # one that is deleted by now is no duplicate
            if name in self.sagemaker_backend.endpoints:
                raise ValidationError(message=f'Cannot create already existing endpoint "{self._arn("endpoint", name)}".')
            self._check_quota(name, self._get_param("EndpointConfigName"))
            created = super().create_endpoint()
            endpoint = self.sagemaker_backend.endpoints[name]
            endpoint.endpoint_status = "Creating"
            self._send(self._order(endpoint, endpoint.endpoint_config_name))
            return created

    def update_endpoint(self) -> ActionResult:
        with self._lock:
            endpoint = self._existing()
            if endpoint.endpoint_status != "InService":
                raise ValidationError(message=f'Cannot update in-progress endpoint "{endpoint.arn}".')
            config = self._get_param("EndpointConfigName")
            self.sagemaker_backend.describe_endpoint_config(config)  # refuses one that there is not
            self._check_quota(endpoint.endpoint_name, config)
            self._send(self._order(endpoint, config))
            endpoint.endpoint_status, endpoint.last_modified_time = "Updating", utcnow()
            return ActionResult({"EndpointArn": endpoint.arn})

    def describe_endpoint(self) -> ActionResult:
        with self._lock:
            endpoint = self._existing()
            content = _without_empty(endpoint.response_object)
            if pending := self._states().get(endpoint.endpoint_name, {}).get("pending"):
                content["PendingDeploymentSummary"] = {"EndpointConfigName": pending}
            config = self.sagemaker_backend.endpoint_configs.get(endpoint.endpoint_config_name)
            if config is not None and config.async_inference_config:
                content["AsyncInferenceConfig"] = config.async_inference_config
            if config is not None and (capture := config.data_capture_config):
                content["DataCaptureConfig"] = {
                    "EnableCapture": capture.get("EnableCapture", True),
                    "CaptureStatus": "Started" if capture.get("EnableCapture", True) else "Stopped",
                    "CurrentSamplingPercentage": capture.get("InitialSamplingPercentage", 100),
                    "DestinationS3Uri": capture.get("DestinationS3Uri", ""),
                    "KmsKeyId": capture.get("KmsKeyId", ""),
                }
            return ActionResult(content)

    def list_endpoints(self) -> ActionResult:
        with self._lock:
            self._refresh()
            return super().list_endpoints()

    def delete_endpoint(self) -> ActionResult:
        with self._lock:
            endpoint = self._existing()
            if endpoint.endpoint_status in CHANGING:
                raise ValidationError(message=f'Cannot update in-progress endpoint "{endpoint.arn}".')
            call(self.runtime_url, "delete", {"region": self.region, "endpoint": endpoint.endpoint_name})
            endpoint.endpoint_status = "Deleting"
            return EmptyResult()

    # -- tags

    def add_tags(self) -> ActionResult:
        with self._lock:
            resource = self._tagged()
            given = {tag["Key"]: tag for tag in [*resource.tags, *self._get_param("Tags")]}
            resource.tags = list(given.values())
            return ActionResult({"Tags": resource.tags})

    def list_tags(self) -> ActionResult:
        return ActionResult({"Tags": list(self._tagged().tags)})

    def delete_tags(self) -> ActionResult:
        self._tagged()
        return super().delete_tags()

    def _tagged(self) -> Any:
        arn = self._get_param("ResourceArn")
        resource = self.sagemaker_backend._get_resource_from_arn(arn) if arn.count("/") == 1 else None
        if resource is None:
            raise ValidationError(message=f"Resource {arn} does not exist")
        return resource

    # -- the runtime

    @classmethod
    def all_orders(cls) -> list[Order]:
        """What a runtime that starts again has to run."""
        found = []
        for region, backend in list(sagemaker_backends[ACCOUNT].items()):
            for endpoint in list(backend.endpoints.values()):
                order = cls._sent.get((region, endpoint.endpoint_name, endpoint.endpoint_config_name))
                if order is not None and endpoint.endpoint_status != "Deleting":
                    found.append(replace(order, fail=endpoint.failure_reason or "") if endpoint.endpoint_status == "Failed" else order)
        return found

    def _send(self, order: Order) -> None:
        # Kept: a configuration or a model that an endpoint was made of may be deleted, and the endpoint goes on.
        self._sent[order.region, order.name, order.config] = order
        call(self.runtime_url, "endpoints", order.json())

    def _existing(self) -> FakeEndpoint:
        """The endpoint that the request names, with its state of now. Raises ValidationError."""
        self._refresh()
        name = self._get_param("EndpointName")
        if name not in self.sagemaker_backend.endpoints:
            raise ValidationError(message=f'Could not find endpoint "{self._arn("endpoint", name)}".')
        return self.sagemaker_backend.endpoints[name]

    def _states(self) -> dict[str, dict[str, Any]]:
        """By name: status, reason, config (in force), pending (being deployed)."""
        try:
            return dict(call(self.runtime_url, f"states/{self.region}"))
        except EndpointError as error:
            raise ServiceUnavailable(str(error)) from None

    def _refresh(self) -> None:
        """Take over from the runtime what has become of the endpoints."""
        states = self._states()
        for name, endpoint in list(self.sagemaker_backend.endpoints.items()):
            state = states.get(name)
            if state is None:  # deleted, and its containers are gone
                del self.sagemaker_backend.endpoints[name]
                continue
            if endpoint.endpoint_status != state["status"]:
                endpoint.last_modified_time = utcnow()
            endpoint.endpoint_status, endpoint.failure_reason = state["status"], state["reason"] or None
            if state["config"] != endpoint.endpoint_config_name:
                endpoint.endpoint_config_name = state["config"]
                if config := self.sagemaker_backend.endpoint_configs.get(state["config"]):
                    endpoint.production_variants = endpoint._process_production_variants(config.production_variants)
                    endpoint.data_capture_config = config.data_capture_config

    def _order(self, endpoint: FakeEndpoint, config_name: str) -> Order:
        config = self.sagemaker_backend.endpoint_configs[config_name]
        variant = config.production_variants[0]
        model: Model = self.sagemaker_backend._models[variant["ModelName"]]
        container = model.primary_container or model.containers[0]
        tags = {tag["Key"]: tag.get("Value", "") for tag in endpoint.tags}
        client = (config.async_inference_config or {}).get("ClientConfig") or {}
        output = (config.async_inference_config or {}).get("OutputConfig") or {}
        serverless = variant.get("ServerlessConfig")
        asynchronous = {
            "output": output.get("S3OutputPath", ""),
            "failure": output.get("S3FailurePath", ""),
            "concurrency": int(client.get("MaxConcurrentInvocationsPerInstance") or 4),
        }
        return Order(
            region=self.region,
            account=self.current_account,
            name=endpoint.endpoint_name,
            arn=endpoint.arn,
            config=config_name,
            variant=variant["VariantName"],
            model=model.model_name,
            image=str(container.get("Image", "")),
            model_data=checks.model_data(container),
            environment=dict(container.get("Environment") or {}),
            multi_model=container.get("Mode") == "MultiModel",
            instances=int(variant.get("InitialInstanceCount") or 1),
            serverless=serverless and {"memory_mb": int(serverless["MemorySizeInMB"]), "concurrency": int(serverless["MaxConcurrency"])},
            asynchronous=asynchronous if output else None,
            health_s=variant.get("ContainerStartupHealthCheckTimeoutInSeconds"),
            fail=tags.get(FAIL_TAG, ""),
            seconds=float(tags.get(SECONDS_TAG) or 0),
        )

    def _check_quota(self, name: str, config_name: str) -> None:
        """Raises ResourceLimitExceeded where this endpoint with the others has more instances of one type than the account may."""
        kind, count = self._instances(config_name)
        others = [one for one in self.sagemaker_backend.endpoints.values() if one.endpoint_name != name and one.endpoint_status != "Failed"]
        used = sum(held for there, held in (self._instances(one.endpoint_config_name) for one in others) if there == kind)
        if kind and used + count > INSTANCES:
            use = f"with current utilization of {used} Instances and a request delta of {count} Instances"
            limit = f"The account-level service limit '{kind} for endpoint usage' is {INSTANCES} Instances, {use}."
            raise ResourceLimitExceeded(f"{limit} Please use AWS Service Quotas to request an increase for this quota.")

    def _instances(self, config_name: str) -> tuple[str, int]:
        """Type and number of a configuration's instances; ("", 0) for a serverless one, and for one that is deleted."""
        config = self.sagemaker_backend.endpoint_configs.get(config_name)
        variant = config.production_variants[0] if config else {}
        return str(variant.get("InstanceType") or ""), int(variant.get("InitialInstanceCount") or 0)

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.current_account}:{kind}/{name}"


def _without_empty(content: dict[str, Any]) -> dict[str, Any]:
    """`content` without the members that AWS leaves out and moto fills with {} or []."""
    return {key: value for key, value in content.items() if value not in (None, {}, [], [None])}
