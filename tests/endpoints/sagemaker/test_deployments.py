"""Endpoints of all four kinds, from creation to deletion: real boto3 against the rehearsal's control plane."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hls_foundry.endpoints.client import Invoker
from hls_foundry.endpoints.sagemaker.endpoints import Check, SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.errors import EndpointError
from tests.endpoints.sagemaker.accounts import NAME, Account

KINDS = ("realtime", "multi_model", "async", "serverless")
NOTHING = {"endpoints": {}, "configs": [], "models": [], "objects": [], "scaling": [], "alarms": []}
LINEAGE = {"zenml-run": "deploy-2026_11_23", "dashboard": "http://127.0.0.1:8237/runs/1?tab=dag"}


def fails(message: str = "agreement 0.2 is less than 0.9999") -> Check:
    def check(task: str, invoker: Invoker) -> None:
        raise EndpointError(message)

    return check


def models_for(account: Account, kind: str, version: str) -> dict[str, object]:
    return dict(account.both(version) if kind == "multi_model" else account.one(version))


@pytest.mark.parametrize("kind", KINDS)
def test_an_endpoint_of_each_kind_is_made_found_updated_and_removed_without_a_trace(account: Account, kind: str) -> None:
    settings, seen = account.settings(kind), []
    first = account.endpoints.deploy(settings, models_for(account, kind, "1"), tags=LINEAGE, check=lambda task, _: seen.append(task))  # type: ignore[arg-type]
    assert (first.name, first.kind, first.status) == (NAME, kind, "InService")
    assert seen == (["burn_scars", "flood"] if kind == "multi_model" else ["burn_scars"])
    assert account.left()["endpoints"][NAME]["tags"]["zenml-run"] == LINEAGE["zenml-run"]
    again = account.endpoints.deploy(settings, models_for(account, kind, "1"), check=lambda task, _: None)  # type: ignore[arg-type]
    assert again.config == first.config
    second = account.endpoints.deploy(settings, models_for(account, kind, "2"))  # type: ignore[arg-type]
    assert "2" in second.model_version
    left = account.left()
    assert left["configs"] == [second.config]
    assert len(left["models"]) == 1
    assert [endpoint.config for endpoint in account.endpoints.list()] == [second.config]
    account.endpoints.delete(NAME, objects=True)
    assert account.left() == NOTHING


def test_an_update_whose_check_fails_leaves_the_old_model_and_nothing_of_the_new_one(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    with pytest.raises(EndpointError, match="agreement"):
        account.endpoints.deploy(account.settings(), account.one("2"), check=fails())
    assert account.left() == before
    assert "/1-" in account.serves()


def test_the_old_model_stays_until_the_check_of_the_new_one_has_ended(account: Account) -> None:
    first = account.endpoints.deploy(account.settings(), account.one("1"))
    during: list[list[str]] = []
    account.endpoints.deploy(account.settings(), account.one("2"), check=lambda *_: during.append(account.left()["configs"]))
    assert first.config in during[0]
    assert len(during[0]) == 2
    assert first.config not in account.left()["configs"]


def test_a_first_deployment_whose_check_fails_leaves_nothing(account: Account) -> None:
    for kind in KINDS:
        with pytest.raises(EndpointError, match="agreement"):
            account.endpoints.deploy(account.settings(kind), models_for(account, kind, "1"), check=fails())  # type: ignore[arg-type]
        assert account.left() == NOTHING, kind


def test_a_check_that_fails_on_an_unchanged_endpoint_leaves_it_alone(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    with pytest.raises(EndpointError, match="agreement"):
        account.endpoints.deploy(account.settings(), account.one("1"), check=fails())
    assert account.left() == before


def test_an_interrupt_during_the_check_goes_back_too(account: Account) -> None:
    def interrupted(task: str, invoker: Invoker) -> None:
        raise KeyboardInterrupt

    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    with pytest.raises(KeyboardInterrupt):
        account.endpoints.deploy(account.settings(), account.one("2"), check=interrupted)
    assert account.left() == before


def test_a_failed_creation_says_why_and_what_the_container_said_last(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    account.states.failures["*"] = "The primary container for production variant AllTraffic did not pass the ping health check."
    account.say(NAME, "listening host=0.0.0.0 port=8080", "error load_failed: the model has digest abc, not def", "stopped")
    caplog.set_level("INFO")
    with pytest.raises(
        EndpointError, match=r"was not created: The primary container .* ping health check; .*load_failed: the model has"
    ) as error:
        account.endpoints.deploy(account.settings(), account.one("1"))
    assert "\n" not in str(error.value)
    assert f"/aws/sagemaker/Endpoints/{NAME}" in str(error.value)
    assert "container   stopped" in caplog.text
    assert account.left() == NOTHING


def test_a_failed_creation_without_a_log_gives_the_reason_alone(account: Account) -> None:
    account.states.failures["*"] = "Request to service failed."
    with pytest.raises(EndpointError, match=r"was not created: Request to service failed$"):
        account.endpoints.deploy(account.settings(), account.one("1"))


def test_an_update_that_does_not_come_up_leaves_the_old_model(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    account.states.failures["*"] = "Not enough capacity."
    with pytest.raises(EndpointError, match=r"was not updated: Not enough capacity"):
        account.endpoints.deploy(account.settings(), account.one("2"))
    assert account.left() == before


def test_a_refused_request_leaves_nothing_behind(account: Account) -> None:
    with pytest.raises(EndpointError, match=r"ResourceLimitExceeded.*ml\.m5\.large for endpoint usage"):
        account.endpoints.deploy(account.settings(instances=500), account.one("1"))
    assert account.left() == NOTHING
    with pytest.raises(EndpointError, match="Could not assume role"):
        account.endpoints.deploy(account.settings(role="nobody"), account.one("1"))
    assert account.left() == NOTHING


def test_an_endpoint_that_we_did_not_make_is_never_touched(account: Account) -> None:
    account.endpoints.deploy(account.settings(name="ours"), account.one("1"))
    config = account.endpoints.get("ours").config
    account.sm.create_endpoint(EndpointName=NAME, EndpointConfigName=config, Tags=[{"Key": "team", "Value": "others"}])
    before = account.left()
    for attempt in (
        lambda: account.endpoints.deploy(account.settings(), account.one("2")),
        lambda: account.endpoints.delete(NAME),
    ):
        with pytest.raises(EndpointError, match=f"not made by HLS Foundry.*hls-foundry={NAME}"):
            attempt()
    with pytest.raises(EndpointError, match=r"no endpoint 'scars' of ours .*there are: ours"):
        account.endpoints.get(NAME)
    assert account.left() == before
    assert [endpoint.name for endpoint in account.endpoints.list()] == ["ours"]


def test_models_and_configurations_of_others_stay(account: Account) -> None:
    endpoint = account.endpoints.deploy(account.settings(), account.one("1"))
    model = account.left()["models"][0]
    container = account.sm.describe_model(ModelName=model)["PrimaryContainer"]
    account.sm.create_model(ModelName=f"{NAME}-m-by-hand", ExecutionRoleArn=account.prepared.role, PrimaryContainer=container)
    account.sm.create_endpoint_config(
        EndpointConfigName=f"{NAME}-c-by-hand",
        ProductionVariants=[{"VariantName": "A", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}],
    )
    account.endpoints.deploy(account.settings(), account.one("2"))
    assert f"{NAME}-c-by-hand" in account.left()["configs"]
    account.endpoints.delete(NAME)
    assert account.left()["models"] == [f"{NAME}-m-by-hand"]
    assert endpoint.config not in account.left()["configs"]


def test_a_name_that_somebody_else_took_for_a_model_is_refused(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    arn = account.sm.describe_model(ModelName=account.left()["models"][0])["ModelArn"]
    account.sm.delete_tags(ResourceArn=arn, TagKeys=["hls-foundry"])
    with pytest.raises(EndpointError, match="was not made for endpoint 'scars'"):
        account.endpoints.deploy(account.settings(), account.one("1"))
    assert account.endpoints.get(NAME).status == "InService"


def test_another_kind_needs_another_endpoint(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    before = account.left()
    with pytest.raises(EndpointError, match="is realtime, and SageMaker does not turn it into serverless: delete it first"):
        account.endpoints.deploy(account.settings("serverless"), account.one("1"))
    assert account.left() == before


def test_a_failed_endpoint_is_made_again(account: Account) -> None:
    account.endpoints.deploy(account.settings(), account.one("1"))
    config = account.endpoints.get(NAME).config
    account.sm.delete_endpoint(EndpointName=NAME)
    account.states.failures["*"] = "out of capacity"
    account.sm.create_endpoint(EndpointName=NAME, EndpointConfigName=config, Tags=[{"Key": "hls-foundry", "Value": NAME}])
    assert account.sm.describe_endpoint(EndpointName=NAME)["EndpointStatus"] == "Failed"
    account.states.failures.clear()
    assert account.endpoints.deploy(account.settings(), account.one("1")).status == "InService"


def test_going_back_needs_the_old_configuration(account: Account) -> None:
    endpoint = account.endpoints.deploy(account.settings(), account.one("1"))
    account.sm.delete_endpoint_config(EndpointConfigName=endpoint.config)
    with pytest.raises(EndpointError, match=f"{endpoint.config} is gone, so that an update could not go back"):
        account.endpoints.deploy(account.settings(), account.one("2"))


def test_a_wait_ends_and_the_next_run_goes_on(account: Account) -> None:
    account.states.seconds = 3.0
    told: list[tuple[str, float]] = []
    impatient = SageMakerEndpoints(account.aws, pace=Pace(0.1, clock=_fast()), provision_s=0)
    with pytest.raises(EndpointError, match=r"still Creating after 60 s: run again to go on waiting"):
        impatient.deploy(account.settings(), account.one("1"), progress=lambda state, seconds: told.append((state, seconds)))
    assert told[0][0] == "Creating"
    assert told[-1][1] >= 60
    assert account.left()["models"]
    account.states.seconds = 0.0
    assert account.endpoints.deploy(account.settings(), account.one("1")).status == "InService"


def _fast() -> Callable[[], float]:
    """A clock on which every look takes 20 seconds."""
    now = [0.0]

    def clock() -> float:
        now[0] += 20
        return now[0]

    return clock


def test_what_a_deletion_left_is_removed_by_the_next(account: Account) -> None:
    account.endpoints.deploy(account.settings("async", autoscaling={"min": 0, "max": 2}), account.one("1"))
    account.sm.delete_endpoint(EndpointName=NAME)
    assert account.left()["models"]
    account.endpoints.delete(NAME)
    assert account.left() == NOTHING
    with pytest.raises(EndpointError, match=r"no endpoint 'scars' of ours in eu-central-1 \(there are: none\)"):
        account.endpoints.delete(NAME)


def test_an_endpoint_can_be_removed_after_its_bucket(account: Account) -> None:
    account.s3.create_bucket(Bucket="short-lived", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    account.s3.put_object(Bucket="short-lived", Key="x/burn_scars/1-aa/model.tar.gz", Body=b"model")
    version = account.published("1")
    elsewhere = type(version)("s3://short-lived/x/burn_scars/1-aa/model.tar.gz", version.sha256, "1", version.bundle_sha256)
    account.endpoints.deploy(account.settings(), {"burn_scars": elsewhere})
    account.s3.delete_object(Bucket="short-lived", Key="x/burn_scars/1-aa/model.tar.gz")
    account.s3.delete_bucket(Bucket="short-lived")
    account.endpoints.delete(NAME, objects=True)
    assert account.left() == NOTHING


def test_a_missing_bucket_and_a_missing_archive_are_said_plainly(account: Account) -> None:
    version = account.published("1")
    gone = type(version)("s3://no-such-bucket/x/flood/1-aa/model.tar.gz", version.sha256, "1", version.bundle_sha256)
    with pytest.raises(EndpointError, match="s3://no-such-bucket: the bucket does not exist"):
        account.endpoints.deploy(account.settings(), {"burn_scars": gone})
    account.s3.delete_object(Bucket=account.prepared.bucket, Key=version.uri.split("/", 3)[3])
    with pytest.raises(EndpointError, match="Could not access model data"):
        account.endpoints.deploy(account.settings(), {"burn_scars": version})
    with pytest.raises(EndpointError, match="is not there any more: publish"):
        account.endpoints.deploy(account.settings("multi_model"), {**account.both("1"), "burn_scars": version} | _without(account, version))
    assert account.left() == NOTHING


def _without(account: Account, version: object) -> dict[str, object]:
    account.s3.delete_object(Bucket=account.prepared.bucket, Key=version.uri.split("/", 3)[3])  # type: ignore[attr-defined]
    return {}


def test_the_models_of_a_multi_model_endpoint_lie_side_by_side_tagged(account: Account) -> None:
    first = account.endpoints.deploy(account.settings("multi_model"), account.both("1"))
    assert first.models == {"burn_scars": "1", "flood": "1"}
    folder = account.serves().split("/endpoints/")[1]
    assert account.objects() == [f"{folder}burn_scars.tar.gz", f"{folder}flood.tar.gz"]
    tags = account.s3.get_object_tagging(Bucket=account.prepared.bucket, Key=f"hls-foundry/endpoints/{folder}flood.tar.gz")["TagSet"]
    assert tags == [{"Key": "hls-foundry", "Value": NAME}]
    second = account.endpoints.deploy(account.settings("multi_model"), {**account.both("1"), "flood": account.published("2", "flood")})
    assert second.models == {"burn_scars": "1", "flood": "2"}
    assert account.serves().split("/endpoints/")[1] != folder
    assert len(account.objects()) == 2
    account.s3.put_object(Bucket=account.prepared.bucket, Key=f"hls-foundry/endpoints/{NAME}/models/notes.txt", Body=b"not ours")
    account.endpoints.delete(NAME)
    assert len(account.objects()) == 3
    account.endpoints.deploy(account.settings("multi_model"), account.both("1"))
    account.endpoints.delete(NAME, objects=True)
    assert account.objects() == [f"{NAME}/models/notes.txt"]


def test_an_archive_of_several_parts_is_copied_once(account: Account) -> None:
    models = account.both("1")
    bucket, key = models["flood"].uri.removeprefix("s3://").split("/", 1)
    account.s3.put_object(Bucket=bucket, Key=key, Body=b"x" * (9 << 20))
    account.endpoints.deploy(account.settings("multi_model"), models)
    copied = f"{account.serves().removeprefix(f's3://{bucket}/')}flood.tar.gz"
    first = account.s3.head_object(Bucket=bucket, Key=copied)
    assert first["ContentLength"] == 9 << 20
    assert account.s3.get_object_tagging(Bucket=bucket, Key=copied)["TagSet"] == [{"Key": "hls-foundry", "Value": NAME}]
    account.endpoints.deploy(account.settings("multi_model"), models)
    assert account.s3.head_object(Bucket=bucket, Key=copied)["LastModified"] == first["LastModified"]


def test_an_update_counts_on_from_the_instances_that_autoscaling_has_set(account: Account) -> None:
    scaled = account.settings(autoscaling={"min": 1, "max": 4})
    account.endpoints.deploy(scaled, account.one("1"))
    sent: list[dict[str, object]] = []
    account.aws.client("sagemaker").meta.events.register(
        "provide-client-params.sagemaker.UpdateEndpoint", lambda params, **_: sent.append(params)
    )
    account.endpoints.deploy(scaled, account.one("2"))
    account.endpoints.deploy(account.settings(autoscaling={"min": 1, "max": 4}, instance_type="ml.c6i.large"), account.one("2"))
    assert [request.get("RetainAllVariantProperties", False) for request in sent] == [True, False]
