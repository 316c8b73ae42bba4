"""Autoscaling of an endpoint's variant: target tracking, and for async endpoints that go to zero a step back up from it.

Target tracking alone does not leave zero before the backlog is over the target, so a lone request would wait for company; a step policy
with an alarm on HasBacklogWithoutCapacity starts the first instance.

https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
"""

from __future__ import annotations

from typing import Any

from hls_foundry.endpoints.aws import Aws, aws_errors
from hls_foundry.endpoints.sagemaker.resources import VARIANT
from hls_foundry.endpoints.settings import TAG, Autoscaling

SCALE_IN_S, SCALE_OUT_S = 300, 60
ASYNC_SCALE_IN_S = 600


def scaling_requests(endpoint: str, kind: str, scaling: Autoscaling) -> dict[str, dict[str, Any]]:
    """The bodies of RegisterScalableTarget ("target") and PutScalingPolicy ("tracking", and "from_zero" where it can be zero)."""
    which = _which(endpoint)
    metric: dict[str, Any] = (
        {
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
                "Statistic": "Average",
            }
        }
        if kind == "async"
        else {"PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
    )
    tracking = {
        **which,
        "PolicyName": _tracking(endpoint),
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": scaling.target_invocations,
            **metric,
            "ScaleInCooldown": ASYNC_SCALE_IN_S if kind == "async" else SCALE_IN_S,
            "ScaleOutCooldown": SCALE_OUT_S,
        },
    }
    requests: dict[str, dict[str, Any]] = {
        "target": {**which, "MinCapacity": scaling.min, "MaxCapacity": scaling.max, "Tags": {TAG: endpoint}},
        "tracking": tracking,
    }
    if scaling.min == 0:
        requests["from_zero"] = {
            **which,
            "PolicyName": _from_zero(endpoint),
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ChangeInCapacity",
                "MetricAggregationType": "Average",
                "Cooldown": SCALE_IN_S,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            },
        }
    return requests


def alarm_request(endpoint: str, policy_arn: str) -> dict[str, Any]:
    """The body of PutMetricAlarm that the step from zero hangs on."""
    return {
        "AlarmName": _from_zero(endpoint),
        "AlarmDescription": f"requests wait at endpoint {endpoint}, which has no instance",
        "MetricName": "HasBacklogWithoutCapacity",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "DatapointsToAlarm": 2,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [policy_arn],
        "Tags": [{"Key": TAG, "Value": endpoint}],
    }


def set_scaling(aws: Aws, endpoint: str, kind: str, scaling: Autoscaling | None) -> None:
    """Give the endpoint this autoscaling and no other of ours. Repeating it changes nothing. Raises EndpointError."""
    with aws_errors(f"autoscaling of endpoint '{endpoint}'"):
        client = aws.client("application-autoscaling")
        if scaling is None or scaling.min > 0:
            _remove_step(aws, endpoint, kind)
        if scaling is None:
            _remove_tracking(client, endpoint)
            return
        requests = scaling_requests(endpoint, kind, scaling)
        client.register_scalable_target(**requests["target"])
        client.put_scaling_policy(**requests["tracking"])
        if "from_zero" in requests:
            arn = client.put_scaling_policy(**requests["from_zero"])["PolicyARN"]
            aws.client("cloudwatch").put_metric_alarm(**alarm_request(endpoint, arn))


def remove_scaling(aws: Aws, endpoint: str, kind: str) -> None:
    """Take away all autoscaling of the endpoint, for good. Raises EndpointError."""
    with aws_errors(f"autoscaling of endpoint '{endpoint}'"):
        _remove_step(aws, endpoint, kind)
        client = aws.client("application-autoscaling")
        for policy in _policies(client, endpoint):
            _delete_policy(client, endpoint, policy)
        _deregister(client, endpoint)


def _remove_step(aws: Aws, endpoint: str, kind: str) -> None:
    if kind != "async":
        return
    cloudwatch, client = aws.client("cloudwatch"), aws.client("application-autoscaling")
    if cloudwatch.describe_alarms(AlarmNames=[_from_zero(endpoint)])["MetricAlarms"]:
        cloudwatch.delete_alarms(AlarmNames=[_from_zero(endpoint)])
    if _from_zero(endpoint) in _policies(client, endpoint):
        _delete_policy(client, endpoint, _from_zero(endpoint))


def _remove_tracking(client: Any, endpoint: str) -> None:
    """Our policy; the target too, where nobody else scales it."""
    policies = _policies(client, endpoint)
    if _tracking(endpoint) in policies:
        _delete_policy(client, endpoint, _tracking(endpoint))
        if len(policies) == 1:
            _deregister(client, endpoint)


def _policies(client: Any, endpoint: str) -> list[str]:
    which = _which(endpoint)
    found = client.get_paginator("describe_scaling_policies").paginate(**which)
    return [policy["PolicyName"] for page in found for policy in page["ScalingPolicies"]]


def _delete_policy(client: Any, endpoint: str, policy: str) -> None:
    client.delete_scaling_policy(**_which(endpoint), PolicyName=policy)


def _deregister(client: Any, endpoint: str) -> None:
    which = _which(endpoint)
    asked = {"ServiceNamespace": which["ServiceNamespace"], "ResourceIds": [which["ResourceId"]]}
    if client.describe_scalable_targets(**asked, ScalableDimension=which["ScalableDimension"])["ScalableTargets"]:
        client.deregister_scalable_target(**which)


def _which(endpoint: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def _tracking(endpoint: str) -> str:
    return f"{endpoint}-tracking"


def _from_zero(endpoint: str) -> str:
    return f"{endpoint}-from-zero"
