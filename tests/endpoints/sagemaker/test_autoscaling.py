"""Autoscaling follows the configuration that answers: set, changed, taken away, and brought back with it."""

from __future__ import annotations

from typing import Any

import pytest

from hls_foundry.errors import EndpointError
from tests.endpoints.sagemaker.accounts import NAME, Account, resource

ASYNC = {"min": 0, "max": 3, "target_invocations": 2}


def bounds(account: Account) -> list[str]:
    return [line.removeprefix(f"{resource()} ") for line in account.scaling()]


def refuse(task: str, invoker: Any) -> None:
    raise EndpointError("not good")


def test_async_goes_to_zero_and_back_up_for_one_request(account: Account) -> None:
    settings = account.settings("async", autoscaling=ASYNC)
    account.endpoints.deploy(settings, account.one("1"))
    account.endpoints.deploy(settings, account.one("1"))
    assert bounds(account) == ["0-3", f"{NAME}-from-zero", f"{NAME}-tracking"]
    alarm = account.client("cloudwatch").describe_alarms(AlarmNames=[f"{NAME}-from-zero"])["MetricAlarms"][0]
    policies = account.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    step = next(policy for policy in policies if policy["PolicyType"] == "StepScaling")
    assert alarm["AlarmActions"] == [step["PolicyARN"]]
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    account.endpoints.deploy(account.settings("async", autoscaling={**ASYNC, "min": 1}), account.one("1"))
    assert bounds(account) == ["1-3", f"{NAME}-tracking"]
    assert account.left()["alarms"] == []
    account.endpoints.deploy(account.settings("async"), account.one("1"))
    assert bounds(account) == []


def test_going_back_brings_the_old_autoscaling_back(account: Account) -> None:
    account.endpoints.deploy(account.settings(autoscaling={"min": 1, "max": 4}), account.one("1"))
    for changes in ({"autoscaling": {"min": 2, "max": 9}}, {}, {"instance_type": "ml.c6i.large"}):
        with pytest.raises(EndpointError, match="not good"):
            account.endpoints.deploy(account.settings(**changes), account.one("2"), check=refuse)
        assert bounds(account) == ["1-4", f"{NAME}-tracking"], changes


def test_autoscaling_goes_before_the_instances_change(account: Account) -> None:
    """SageMaker refuses to update a scaled variant to other instances."""
    account.endpoints.deploy(account.settings(autoscaling={"min": 1, "max": 4}), account.one("1"))
    during: list[list[str]] = []
    other = account.settings(autoscaling={"min": 1, "max": 4}, instance_type="ml.c6i.large")
    account.endpoints.deploy(other, account.one("1"), check=lambda *_: during.append(bounds(account)))
    assert during == [[]]
    assert bounds(account) == ["1-4", f"{NAME}-tracking"]


def test_what_others_scale_stays_until_the_endpoint_goes(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    client = account.client("application-autoscaling")
    which = {"ServiceNamespace": "sagemaker", "ResourceId": resource(), "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
    client.register_scalable_target(**which, MinCapacity=1, MaxCapacity=7)
    client.put_scaling_policy(
        **which,
        PolicyName="by-hand",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 9,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        },
    )
    account.endpoints.deploy(account.settings(), account.one("1"))
    assert bounds(account) == ["by-hand", "1-7"]
    account.endpoints.delete(NAME)
    assert bounds(account) == []
