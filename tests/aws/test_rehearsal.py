"""Endpoints of the rehearsal behave as SageMaker's do, over real HTTP and with the project's real serving application."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.aws.rehearsed import Account, until
from tests.serving.scenes import scene_tiff


def invoke(account: Account, name: str, body: bytes | None = None, **options: str) -> Any:
    given = {"ContentType": "image/tiff", "Accept": "image/tiff", **options}
    return account.runtime.invoke_endpoint(EndpointName=name, Body=scene_tiff(64) if body is None else body, **given)


def digest(account: Account, name: str, **options: str) -> str:
    return str(invoke(account, name, **options)["CustomAttributes"])


@pytest.fixture
def endpoint(aws_account: Account, archives: tuple[Path, Path]) -> str:
    """A real-time endpoint in service that may read the account's bucket."""
    data = aws_account.put("one/model.tar.gz", archives[0])
    model = aws_account.model("one", data, environment={"HLS_S3_ALLOW": aws_account.prepared.bucket})
    name = aws_account.create("flood", aws_account.config("one", model))
    aws_account.wait(name)
    return name


def test_an_endpoint_comes_up_answers_and_goes(aws_account: Account, archives: tuple[Path, Path]) -> None:
    model = aws_account.model("one", aws_account.put("one/model.tar.gz", archives[0]))
    name = aws_account.create("flood", aws_account.config("one", model), hls_foundry="flood")
    found = aws_account.sm.describe_endpoint(EndpointName=name)
    assert found["EndpointStatus"] == "Creating"
    for call in (
        lambda: aws_account.sm.delete_endpoint(EndpointName=name),
        lambda: aws_account.create("flood", f"{aws_account.prefix}-one"),
    ):
        with pytest.raises(ClientError, match=r"in-progress|already existing"):
            call()
    aws_account.wait(name)
    assert aws_account.sm.list_tags(ResourceArn=found["EndpointArn"])["Tags"] == [{"Key": "hls-foundry", "Value": "flood"}]
    reply = invoke(aws_account, name)
    assert (reply["ContentType"], reply["InvokedProductionVariant"]) == ("image/tiff", "AllTraffic")
    assert reply["CustomAttributes"].startswith("model_sha256=")
    assert reply["Body"].read(4) in (b"II*\0", b"MM\0*")
    assert any("model_loaded" in line for line in aws_account.log_lines(name))
    aws_account.sm.delete_endpoint(EndpointName=name)
    assert aws_account.gone(name)
    with pytest.raises(ClientError, match="not found"):
        invoke(aws_account, name)


def test_errors_of_the_container_limits_and_faults_reach_the_client_as_from_aws(aws_account: Account, endpoint: str) -> None:
    runtime, faults = aws_account.runtime, aws_account.rehearsal.faults
    with pytest.raises(runtime.exceptions.ModelError) as refused:
        invoke(aws_account, endpoint, b"not a scene")
    assert refused.value.response["OriginalStatusCode"] == 422
    assert json.loads(refused.value.response["OriginalMessage"])["error"] == "bad_image"
    with pytest.raises(ClientError) as large:
        invoke(aws_account, endpoint, b"x" * 6_291_457)
    assert large.value.response["Error"]["Code"] == "413"
    image = json.dumps({"image": aws_account.put("scene.tif", scene_tiff(64))}).encode()
    assert invoke(aws_account, endpoint, image, ContentType="application/json")["ContentType"] == "image/tiff"

    faults.throttle(endpoint, 2)
    assert invoke(aws_account, endpoint)["ResponseMetadata"]["RetryAttempts"] == 2
    before = faults.set_limits(model_s=0.001)
    try:
        with pytest.raises(runtime.exceptions.ModelError, match="timed out") as late:
            invoke(aws_account, endpoint)
        assert late.value.response["OriginalStatusCode"] == 0
    finally:
        faults.set_limits(**before)
    with pytest.raises(ClientError, match="TargetModel"):
        invoke(aws_account, endpoint, TargetModel="flood.tar.gz")
    with pytest.raises(ClientError, match="not an asynchronous"):
        runtime.invoke_endpoint_async(EndpointName=endpoint, InputLocation="s3://bucket/key")

    first = faults.containers(endpoint)[0]
    environment = dict(entry.split("=", 1) for entry in Path(f"/proc/{first['pid']}/environ").read_text().split("\0") if entry)
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & set(environment)
    assert environment["HLS_HOST"] == "127.0.0.1"
    assert environment["SM_MODEL_DIR"].startswith(str(aws_account.rehearsal.home))

    assert faults.kill_container(endpoint) == first["pid"]
    until(lambda: faults.containers(endpoint)[0]["starts"] == 2 and faults.containers(endpoint)[0]["healthy"])
    assert invoke(aws_account, endpoint)["ContentType"] == "image/tiff"
    assert any("started again" in line for line in aws_account.log_lines(endpoint))


def test_an_update_under_load_loses_no_request_and_a_failing_one_changes_nothing(
    aws_account: Account, endpoint: str, archives: tuple[Path, Path]
) -> None:
    old = digest(aws_account, endpoint)
    seen: list[str] = []
    wrong: list[Exception] = []
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.wait(0.1):
            try:
                seen.append(digest(aws_account, endpoint))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=keep_calling) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        model = aws_account.model("two", aws_account.put("two/model.tar.gz", archives[1]))
        config = aws_account.config("two", model)
        aws_account.sm.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)
        found = aws_account.sm.describe_endpoint(EndpointName=endpoint)
        assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("Updating", f"{aws_account.prefix}-one")
        assert found["PendingDeploymentSummary"]["EndpointConfigName"] == config
        assert aws_account.wait(endpoint)["EndpointConfigName"] == config
        new = digest(aws_account, endpoint)

        aws_account.sm.add_tags(ResourceArn=found["EndpointArn"], Tags=[{"Key": "hls-rehearsal-fail", "Value": "no capacity"}])
        aws_account.sm.update_endpoint(EndpointName=endpoint, EndpointConfigName=aws_account.config("three", model))
        found = aws_account.wait(endpoint)
        assert found["EndpointConfigName"] == config
        assert found["FailureReason"] == "no capacity"
        assert digest(aws_account, endpoint) == new != old
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert set(seen) == {old, new}
    assert len(aws_account.rehearsal.faults.containers(endpoint)) == 1


def test_creations_that_fail_say_why_and_leave_no_process(aws_account: Account, archives: tuple[Path, Path]) -> None:
    data, broken = aws_account.put("one/model.tar.gz", archives[0]), aws_account.put("broken/model.tar.gz", b"no archive")
    asked = aws_account.create("asked", aws_account.config("asked", aws_account.model("asked", data)), hls_rehearsal_fail="no capacity")
    archive = aws_account.create("archive", aws_account.config("archive", aws_account.model("archive", broken)))
    changed = aws_account.model("changed", data, environment={"HLS_MODEL_SHA256": "0" * 64})
    crash = aws_account.create("crash", aws_account.config("changed", changed))
    reasons = {asked: "no capacity", archive: "Failed to extract model data archive", crash: "did not pass the ping health check"}
    for name, reason in reasons.items():
        assert reason in aws_account.wait(name, "Failed")["FailureReason"]
        assert aws_account.rehearsal.faults.containers(name) == []
    assert any("HLS_MODEL_SHA256" in line for line in aws_account.log_lines(crash))
    with pytest.raises(ClientError, match="in-progress"):
        aws_account.sm.update_endpoint(EndpointName=crash, EndpointConfigName=f"{aws_account.prefix}-asked")
    with pytest.raises(ClientError, match="not in service"):
        invoke(aws_account, crash)


def test_a_multi_model_endpoint_unloads_the_least_recently_used_when_memory_is_short(
    aws_account: Account, archives: tuple[Path, Path]
) -> None:
    prefix = aws_account.put("models/burn.tar.gz", archives[0]).rpartition("/")[0]
    aws_account.put("models/flood.tar.gz", archives[1])
    # One model fits, two do not: a tiny one weighs about half a megabyte.
    model = aws_account.model("both", prefix, environment={"HLS_MODEL_MEMORY_MB": "0.9"}, mode="MultiModel")
    name = aws_account.create("both", aws_account.config("both", model))
    aws_account.wait(name)
    digests = {target: digest(aws_account, name, TargetModel=target) for target in ("burn.tar.gz", "flood.tar.gz", "burn.tar.gz")}
    assert len(set(digests.values())) == 2
    assert aws_account.rehearsal.faults.containers(name)[0]["models"] == ["burn.tar.gz"]
    until(lambda: sum("unloaded" in line and "least recently" in line for line in aws_account.log_lines(name)) == 2)
    with pytest.raises(ClientError, match="TargetModel"):
        invoke(aws_account, name)
    with pytest.raises(ClientError, match="Failed to download model data"):
        invoke(aws_account, name, TargetModel="absent.tar.gz")


def test_asynchronous_answers_and_errors_come_to_s3(aws_account: Account, archives: tuple[Path, Path]) -> None:
    base = f"s3://{aws_account.prepared.bucket}/{aws_account.prefix}"
    output = {"OutputConfig": {"S3OutputPath": f"{base}/out", "S3FailurePath": f"{base}/failed"}}
    model = aws_account.model("one", aws_account.put("one/model.tar.gz", archives[0]))
    name = aws_account.create("later", aws_account.config("later", model, AsyncInferenceConfig=output))
    aws_account.wait(name)
    call = aws_account.runtime.invoke_endpoint_async
    scene = aws_account.put("scene.tif", scene_tiff(64))
    good = call(EndpointName=name, InputLocation=scene, ContentType="image/tiff", Accept="image/tiff", InferenceId="mine")
    assert good["InferenceId"] == "mine"
    assert until(lambda: aws_account.content(good["OutputLocation"]))[:2] in (b"II", b"MM")
    inline = call(EndpointName=name, Body=scene_tiff(64), ContentType="image/tiff", Accept="application/x-npy")
    assert until(lambda: aws_account.content(inline["OutputLocation"]))[:6] == b"\x93NUMPY"
    bad = call(EndpointName=name, InputLocation=aws_account.put("bad.tif", b"no scene"), ContentType="image/tiff")
    assert b"client error (422)" in until(lambda: aws_account.content(bad["FailureLocation"]))
    absent = call(EndpointName=name, InputLocation=f"{base}/absent.tif", ContentType="image/tiff")
    assert b"Failed to download input" in until(lambda: aws_account.content(absent["FailureLocation"]))
    with pytest.raises(ClientError, match="128000"):
        call(EndpointName=name, Body=b"x" * 128_001, ContentType="image/tiff")
    with pytest.raises(ClientError, match="asynchronous"):
        invoke(aws_account, name)


def test_a_serverless_endpoint_starts_when_it_is_called_and_throttles(aws_account: Account, archives: tuple[Path, Path]) -> None:
    model = aws_account.model("one", aws_account.put("one/model.tar.gz", archives[0]))
    config = aws_account.config("cold", model, serverless={"MemorySizeInMB": 3072, "MaxConcurrency": 1})
    name = aws_account.create("cold", config)
    aws_account.wait(name)
    faults = aws_account.rehearsal.faults
    before = faults.set_limits(serverless_idle_s=0.1)
    try:
        until(lambda: faults.containers(name) == [])
        faults.set_limits(**before)
        impatient = aws_account.client("sagemaker-runtime", retries=0)
        cold = threading.Thread(target=invoke, args=(aws_account, name))
        cold.start()
        time.sleep(0.3)
        with pytest.raises(ClientError, match="ThrottlingException"):
            impatient.invoke_endpoint(EndpointName=name, Body=b"x", ContentType="image/tiff")
        cold.join()
        assert len(faults.containers(name)) == 1
    finally:
        faults.set_limits(**before)
    with pytest.raises(ClientError, match="413"):
        invoke(aws_account, name, b"x" * (4 * 2**20 + 1))


def test_what_aws_refuses_is_refused(aws_account: Account, archives: tuple[Path, Path]) -> None:
    sm, data = aws_account.sm, aws_account.put("one/model.tar.gz", archives[0])
    model, both = aws_account.model("one", data), aws_account.model("both", data.rpartition("/")[0], mode="MultiModel")
    config = aws_account.config("one", model)
    container = {"Image": aws_account.prepared.image, "ModelDataUrl": data}
    small = {"MemorySizeInMB": 2048, "MaxConcurrency": 2}
    role = aws_account.prepared.role
    refused = [
        ("already existing model", lambda: aws_account.model("one", data)),
        ("Could not assume role", lambda: sm.create_model(ModelName="x", ExecutionRoleArn=f"{role}-x", PrimaryContainer=container)),
        ("not found", lambda: sm.create_model(ModelName="x", ExecutionRoleArn=role, PrimaryContainer={"Image": f"{container['Image']}-x"})),
        ("non-ECR", lambda: sm.create_model(ModelName="x", ExecutionRoleArn=role, PrimaryContainer={"Image": "docker.io/library/x"})),
        ("Could not access model data", lambda: aws_account.model("x", f"{data}-x")),
        ("located in eu-central-1", lambda: aws_account.model("x", "s3://a-bucket-that-is-not-there/model.tar.gz")),
        ("already existing endpoint configuration", lambda: aws_account.config("one", model)),
        ("MultiModel", lambda: aws_account.config("x", both, serverless=small)),
        ("AsyncInferenceConfig", lambda: aws_account.config("x", model, serverless=small, AsyncInferenceConfig={"OutputConfig": {}})),
        ("instanceType", lambda: aws_account.config("x", model, variant={"InstanceType": "ml.large"})),
        ("Could not find", lambda: aws_account.create("x", "absent")),
        ("Could not find", lambda: sm.update_endpoint(EndpointName="absent", EndpointConfigName=config)),
        ("ResourceLimitExceeded", lambda: aws_account.create("x", aws_account.config("many", model, instances=9))),
        ("does not exist", lambda: sm.list_tags(ResourceArn="arn:aws:sagemaker:eu-central-1:123456789012:endpoint/absent")),
    ]
    for words, call in refused:
        with pytest.raises(ClientError, match=words):
            call()
    assert aws_account.names() == []
    found = sm.describe_endpoint_config(EndpointConfigName=config)
    assert not {"AsyncInferenceConfig", "DataCaptureConfig"} & set(found)
    assert "VpcConfig" not in sm.describe_model(ModelName=model)


def test_tags_scaling_quotas_and_the_image_are_there(aws_account: Account, archives: tuple[Path, Path]) -> None:
    model = aws_account.model("one", aws_account.put("one/model.tar.gz", archives[0]))
    endpoint = aws_account.create("tagged", aws_account.config("one", model), hls_rehearsal_fail="not to be started")
    arn = aws_account.sm.describe_endpoint(EndpointName=endpoint)["EndpointArn"]
    aws_account.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}])
    aws_account.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "2"}])
    assert aws_account.sm.list_tags(ResourceArn=arn)["Tags"][1:] == [{"Key": "a", "Value": "2"}]

    scaling = aws_account.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=3)
    tracking = {"TargetValue": 70.0, "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
    policy = {"PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": tracking}
    scaling.put_scaling_policy(PolicyName="p", **target, **policy)
    assert len(scaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=target["ResourceId"])["ScalingPolicies"]) == 1
    scaling.delete_scaling_policy(PolicyName="p", **target)
    scaling.deregister_scalable_target(**target)
    listed = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[target["ResourceId"]])
    assert listed["ScalableTargets"] == []

    quotas = aws_account.client("service-quotas").list_service_quotas(ServiceCode="sagemaker")["Quotas"]
    assert {"ml.m5.large for endpoint usage"} <= {quota["QuotaName"] for quota in quotas}
    ecr, repository = aws_account.client("ecr"), aws_account.prepared.image.partition("/")[2].partition(":")[0]
    images = [{"imageTag": "latest"}]
    assert ecr.describe_images(repositoryName=repository, imageIds=images)["imageDetails"][0]["imageTags"] == ["latest"]
    manifest = json.loads(ecr.batch_get_image(repositoryName=repository, imageIds=images)["images"][0]["imageManifest"])
    assert manifest["manifests"][0]["platform"]["architecture"] == "amd64"
