"""What AWS answers becomes what a client of the container would have got, or one line that says what to do."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from hls_foundry.endpoints.inbox import S3Inbox
from hls_foundry.endpoints.sagemaker.invoker import SageMakerInvoker, Target
from hls_foundry.endpoints.sagemaker.model_errors import STATUSES
from hls_foundry.endpoints.sagemaker.patience import Patience
from hls_foundry.errors import ApiRefusal, EndpointError
from tests.endpoints.sagemaker.answering import Answer, Answering, error, model_error
from tests.serving.scenes import npy, reflectance, scene_tiff

ROOT = Path(__file__).resolve().parents[3]
BUCKET, TIFF, JSON, NPY = "requests", "image/tiff", "application/json", "application/x-npy"
REFUSED = json.dumps({"error": "bad_image", "detail": "the image is not a TIFF file: send a GeoTIFF"})
THROTTLED = error(400, "ThrottlingException", "Rate exceeded")
LOADING = error(429, "ModelNotReadyException", "Model is not ready for inference")
CREDENTIALS = {"region_name": "eu-central-1", "aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


@dataclass
class Paused:
    """A clock that only sleeping moves, and what was slept."""

    now: float = 0.0

    def __post_init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, **bounds: Any) -> Patience:
        return Patience(sleep=self.sleep, clock=lambda: self.now, **bounds)


@pytest.fixture(scope="module")
def aws() -> Iterator[Answering]:
    with Answering() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **CREDENTIALS)
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    server.stop()


def objects(s3: Any) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


@pytest.fixture
def inbox(s3: Any) -> Iterator[S3Inbox]:
    yield S3Inbox(s3, BUCKET, "hls-foundry/inbox")
    assert objects(s3) == [], "something stayed behind"


def runtime(aws: Answering, read_s: float = 20.0) -> Any:
    config = Config(read_timeout=read_s, connect_timeout=2, retries={"mode": "standard", "total_max_attempts": 1})
    return boto3.client("sagemaker-runtime", endpoint_url=aws.url, config=config, **CREDENTIALS)


def invoker(aws: Answering, kind: Any = "realtime", model: str | None = None, **more: Any) -> SageMakerInvoker:
    more.setdefault("patience", Paused().patience())
    read_s = more.pop("read_s", 20.0)
    return SageMakerInvoker(Target("burn-scars", kind, model), runtime(aws, read_s), **more)


# -- the container's own words


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500])
def test_the_containers_refusals_come_as_over_http(aws: Answering, status: int) -> None:
    aws.answer(model_error(status, REFUSED))
    reply = invoker(aws).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.media_type, reply.json()["error"]) == (status, JSON, "bad_image")
    assert len(aws.asked) == 1, "a refusal is not asked again"


def test_a_model_error_without_its_members_is_read_from_its_sentence(aws: Answering) -> None:
    whole = json.loads(model_error(422, REFUSED).body)["Message"]
    aws.answer(error(424, "ModelError", whole))
    reply = invoker(aws).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.json()) == (422, json.loads(REFUSED))


def test_a_bare_413_is_a_413_of_the_contract(aws: Answering) -> None:
    aws.answer(Answer(413, b"HTTP content length exceeded 6291456 bytes.", {"Content-Type": "text/plain"}))
    reply = invoker(aws).invoke(b"x", content_type=TIFF)
    assert reply.status == 413
    assert reply.json()["error"] == "body_too_large"


def test_every_error_word_of_the_serving_application_has_its_status() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "hls_foundry" / "serving").glob("*.py")))
    said = {word: int(status) for status, word in re.findall(r'RequestError\(\s*(\d{3}), "(\w+)"', sources)}
    assert len(said) > 15
    assert {word: STATUSES.get(word) for word in said} == said


def test_what_the_client_says_reaches_the_wire_and_what_the_endpoint_says_comes_back(aws: Answering) -> None:
    aws.answer(
        Answer(
            200,
            b"II*",
            {"Content-Type": TIFF, "X-Amzn-SageMaker-Custom-Attributes": "model_sha256=abc", "x-Amzn-Invoked-Production-Variant": "A"},
        )
    )
    client = invoker(aws, "multi_model", "flood.tar.gz")
    reply = client.invoke(b"body", content_type=NPY, accept=TIFF, attributes="threshold=0.4;bands=2,3,4,9,12,13")
    (asked,) = aws.asked
    assert asked.path == "/endpoints/burn-scars/invocations"
    assert asked.body == b"body"
    assert asked.headers["content-type"] == NPY
    assert asked.headers["accept"] == TIFF
    assert asked.headers["x-amzn-sagemaker-custom-attributes"] == "threshold=0.4;bands=2,3,4,9,12,13"
    assert asked.headers["x-amzn-sagemaker-target-model"] == "flood.tar.gz"
    assert (reply.status, reply.media_type, reply.body) == (200, TIFF, b"II*")
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == "model_sha256=abc"


@pytest.mark.parametrize("attributes", ["bands=" + "1," * 512, "crs=Gauß-Krüger"])
def test_options_that_sagemaker_does_not_hand_through_are_not_sent(aws: Answering, attributes: str) -> None:
    aws.answer(Answer())
    with pytest.raises(EndpointError, match="1024 ASCII characters"):
        invoker(aws).invoke(b"x", content_type=TIFF, attributes=attributes)
    assert aws.asked == []


# -- asking again


@pytest.mark.parametrize(
    "trouble",
    [THROTTLED, LOADING, error(503, "ServiceUnavailable", "busy"), error(500, "InternalFailure", "?"), Answer(drop=True), Answer(502, b"")],
)
def test_what_passes_is_asked_again_with_growing_pauses(aws: Answering, trouble: Answer) -> None:
    paused = Paused()
    aws.answer(trouble, trouble, trouble, Answer(200, b"done"))
    assert invoker(aws, patience=paused.patience(chance=lambda: 0.5)).invoke(b"x", content_type=TIFF).body == b"done"
    assert paused.slept == [0.1875, 0.375, 0.75]
    assert {asked.body for asked in aws.asked} == {b"x"}


def test_clients_do_not_come_back_together(aws: Answering) -> None:
    pauses = []
    for _ in range(5):
        paused = Paused()
        aws.answer(THROTTLED, Answer())
        invoker(aws, patience=paused.patience()).invoke(b"x", content_type=TIFF)
        pauses += paused.slept
    assert len(set(pauses)) == 5
    assert all(0.125 <= pause <= 0.25 for pause in pauses)


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        (THROTTLED, "AWS throttles calls of endpoint 'burn-scars': try again later (asked 6 times"),
        (Answer(drop=True), "endpoint 'burn-scars' cannot be reached"),
        (error(503, "ServiceUnavailable", "busy"), "endpoint 'burn-scars' failed in AWS (503"),
        (error(424, "ModelError", "Received server error (0) from primary with message", OriginalStatusCode=0), "did not answer"),
    ],
)
def test_patience_ends_with_one_line(aws: Answering, trouble: Answer, line: str) -> None:
    aws.answer(trouble)
    with pytest.raises(EndpointError) as failure:
        invoker(aws).invoke(b"x", content_type=TIFF)
    assert line in str(failure.value)
    assert "\n" not in str(failure.value)
    assert len(aws.asked) == 6


def test_a_model_that_is_being_loaded_is_waited_for_by_the_clock(aws: Answering) -> None:
    paused = Paused()
    aws.answer(LOADING)
    with pytest.raises(EndpointError, match="still loading its model"):
        invoker(aws, patience=paused.patience(total_s=120)).invoke(b"x", content_type=TIFF)
    assert 100 < paused.now <= 120
    assert len(aws.asked) > 10


def test_an_endpoint_that_keeps_silent_is_asked_twice(aws: Answering) -> None:
    aws.answer(Answer(after_s=1.0))
    with pytest.raises(EndpointError, match=r"did not answer within its minute.*kind: async"):
        invoker(aws, read_s=0.2).invoke(b"x", content_type=TIFF)
    assert len(aws.asked) == 2
    late = 'Received server error (0) from primary with message "Your invocation timed out while waiting for a response"'
    aws.answer(error(424, "ModelError", late, OriginalStatusCode=0, OriginalMessage=late))
    with pytest.raises(EndpointError, match="did not answer within its minute"):
        invoker(aws).invoke(b"x", content_type=TIFF)
    assert len(aws.asked) == 2


def test_a_busy_container_is_asked_again_and_then_believed(aws: Answering) -> None:
    busy = model_error(503, json.dumps({"error": "busy", "detail": "all places are taken"}))
    aws.answer(busy, Answer(200, b"done"))
    assert invoker(aws).invoke(b"x", content_type=TIFF).body == b"done"
    aws.answer(busy)
    reply = invoker(aws).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.json()["error"], len(aws.asked)) == (503, "busy", 6)


# -- what AWS itself refuses


def test_an_endpoint_that_is_not_there_is_one_line(aws: Answering) -> None:
    aws.answer(error(400, "ValidationError", "Endpoint burn-scars of account 123456789012 not found."))
    for client in (invoker(aws), invoker(aws, "serverless")):
        with pytest.raises(EndpointError, match="there is no endpoint 'burn-scars' in this account and region") as failure:
            client.invoke(b"x", content_type=TIFF)
        assert not isinstance(failure.value, ApiRefusal)
        assert "123456789012" not in str(failure.value)


def test_a_request_that_aws_refuses_is_told_apart_from_a_refusal_of_the_container(aws: Answering) -> None:
    aws.answer(error(400, "ValidationError", "Body must not be empty"))
    with pytest.raises(ApiRefusal, match="AWS refuses the request to endpoint 'burn-scars': Body must not be empty"):
        invoker(aws).invoke(b"", content_type=TIFF)


def test_expired_credentials_are_one_line_without_them(aws: Answering) -> None:
    aws.answer(error(403, "ExpiredTokenException", "The security token included in the request is expired"))
    with pytest.raises(EndpointError, match="expired") as failure:
        invoker(aws).invoke(b"x", content_type=TIFF)
    assert "testing" not in str(failure.value)
    assert len(aws.asked) == 1


# -- bodies that the API does not carry


@pytest.fixture(scope="module")
def large() -> bytes:
    """5.8 MB: more than a serverless endpoint takes."""
    return scene_tiff(700)


class Looking(Answering):
    """Looks at what lies in S3 while a request is answered."""

    def __init__(self, s3: Any, *answers: Answer) -> None:
        super().__init__(*answers)
        self._s3 = s3
        self.stored: list[bytes] = []

    def _reply(self, handler: Any, asked: Any) -> None:
        document = json.loads(asked.body)
        bucket, _, key = document["image"].removeprefix("s3://").partition("/")
        self.stored.append(self._s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        super()._reply(handler, asked)


def test_a_scene_that_is_too_large_goes_through_s3_with_its_options(s3: Any, inbox: S3Inbox, large: bytes, tmp_path: Path) -> None:
    (tmp_path / "scene.tif").write_bytes(large)
    in_json = json.dumps({"image": base64.b64encode(large).decode(), "threshold": 0.4}).encode()
    with Looking(s3) as aws:
        client = invoker(aws, "serverless", inbox=inbox)
        client.invoke(large, content_type=TIFF, accept=TIFF, attributes="threshold=0.4;bands=1,2,3,4,5,6")
        client.invoke_file(tmp_path / "scene.tif", accept=TIFF)
        client.invoke(in_json, content_type=JSON, accept=TIFF)
        assert [asked.headers["content-type"] for asked in aws.asked] == [JSON] * 3
        assert [asked.headers["accept"] for asked in aws.asked] == [TIFF] * 3
        sent = [json.loads(asked.body) for asked in aws.asked]
        assert aws.stored == [large] * 3
    uris = [document.pop("image") for document in sent]
    assert sent == [{"threshold": "0.4", "bands": "1,2,3,4,5,6"}, {}, {"threshold": 0.4}]
    assert len(set(uris)) == 3
    assert all(uri.startswith("s3://requests/hls-foundry/inbox/") and uri.endswith(".tif") for uri in uris)


def test_what_cannot_go_through_s3_is_one_line(aws: Answering, inbox: S3Inbox, large: bytes) -> None:
    aws.answer(Answer())
    with pytest.raises(EndpointError, match=r"5\.6 MB is more than the 4 MB that endpoint 'burn-scars' \(serverless\) takes.*s3_allow"):
        invoker(aws, "serverless").invoke(large, content_type=TIFF)
    with pytest.raises(EndpointError, match="only GeoTIFFs go through S3"):
        invoker(aws, "serverless", inbox=inbox).invoke(npy(reflectance(500)), content_type=NPY)
    with pytest.raises(EndpointError, match="only GeoTIFFs go through S3"):
        invoker(aws, "serverless", inbox=inbox).invoke(b"[" + b"1," * 3_000_000 + b"1]", content_type=JSON)
    assert aws.asked == []


def test_the_object_goes_also_when_the_request_fails(aws: Answering, inbox: S3Inbox, large: bytes) -> None:
    aws.answer(error(403, "AccessDeniedException", "no"))
    with pytest.raises(EndpointError, match="access denied"):
        invoker(aws, "serverless", inbox=inbox).invoke(large, content_type=TIFF)


def test_an_upload_that_s3_refuses_is_one_line(aws: Answering, s3: Any, large: bytes) -> None:
    aws.answer(Answer())
    with pytest.raises(EndpointError, match="uploading to s3://gone: the bucket does not exist"):
        invoker(aws, "serverless", inbox=S3Inbox(s3, "gone", "x")).invoke(large, content_type=TIFF)
    assert aws.asked == []


# -- asynchronous endpoints


def accepted(number: int = 1) -> Answer:
    headers = {
        "X-Amzn-SageMaker-OutputLocation": f"s3://{BUCKET}/out/{number}.out",
        "X-Amzn-SageMaker-FailureLocation": f"s3://{BUCKET}/out/failures/{number}-error.out",
        "Content-Type": "application/json",
    }
    return Answer(202, json.dumps({"InferenceId": str(number)}).encode(), headers)


def put_later(s3: Any, key: str, content: bytes, media_type: str = "binary/octet-stream") -> threading.Thread:
    def put() -> None:
        time.sleep(0.3)
        s3.put_object(Bucket=BUCKET, Key=key, Body=content, ContentType=media_type)

    thread = threading.Thread(target=put)
    thread.start()
    return thread


def test_an_async_request_goes_and_comes_through_s3(aws: Answering, s3: Any, inbox: S3Inbox, tmp_path: Path) -> None:
    (tmp_path / "scene.tif").write_bytes(scene_tiff(64))
    client = invoker(aws, "async", s3=s3, inbox=inbox, patience=Patience(), wait_s=10)
    for send in (
        lambda: client.invoke(scene_tiff(64), content_type=TIFF, accept=TIFF, attributes="threshold=0.4"),
        lambda: client.invoke_file(tmp_path / "scene.tif", accept=TIFF, attributes="threshold=0.4"),
    ):
        aws.answer(accepted())
        thread = put_later(s3, "out/1.out", b"II*\0")
        reply = send()
        thread.join()
        assert (reply.status, reply.media_type, reply.body) == (200, TIFF, b"II*\0")
        assert reply.seconds > 0.2
        (asked,) = aws.asked
        assert asked.path == "/endpoints/burn-scars/async-invocations"
        assert asked.headers["x-amzn-sagemaker-inputlocation"].startswith(f"s3://{BUCKET}/hls-foundry/inbox/")
        assert asked.headers["x-amzn-sagemaker-content-type"] == TIFF
        assert asked.headers["x-amzn-sagemaker-accept"] == TIFF
        assert asked.headers["x-amzn-sagemaker-custom-attributes"] == "threshold=0.4"


@pytest.mark.parametrize(
    "failure",
    [
        REFUSED.encode(),
        json.loads(model_error(422, REFUSED).body)["Message"].encode(),
        model_error(422, REFUSED).body,
    ],
    ids=["the container's body", "AWS's sentence", "a ModelError"],
)
def test_an_async_failure_is_the_containers_refusal(aws: Answering, s3: Any, inbox: S3Inbox, failure: bytes) -> None:
    aws.answer(accepted())
    s3.put_object(Bucket=BUCKET, Key="out/failures/1-error.out", Body=failure)
    reply = invoker(aws, "async", s3=s3, inbox=inbox).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.json()) == (422, json.loads(REFUSED))


def test_an_async_failure_of_another_form_is_shown_as_it_is(aws: Answering, s3: Any, inbox: S3Inbox) -> None:
    aws.answer(accepted())
    s3.put_object(Bucket=BUCKET, Key="out/failures/1-error.out", Body=b"Model server went away")
    reply = invoker(aws, "async", s3=s3, inbox=inbox).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.body) == (424, b"Model server went away")


def test_an_async_container_that_was_busy_is_asked_again(aws: Answering, s3: Any, inbox: S3Inbox) -> None:
    aws.answer(accepted(1), accepted(2))
    s3.put_object(Bucket=BUCKET, Key="out/failures/1-error.out", Body=json.dumps({"error": "busy", "detail": "try again"}).encode())
    s3.put_object(Bucket=BUCKET, Key="out/2.out", Body=b"{}", ContentType="application/geo+json")
    reply = invoker(aws, "async", s3=s3, inbox=inbox).invoke(b"x", content_type=TIFF)
    assert (reply.status, reply.media_type) == (200, "application/geo+json")


def test_an_async_result_is_waited_for_gently_and_not_for_ever(aws: Answering, s3: Any, inbox: S3Inbox) -> None:
    paused = Paused()
    aws.answer(THROTTLED, accepted())
    with pytest.raises(EndpointError, match=r"put no result under s3://requests/out in 120 s: see its log"):
        invoker(aws, "async", s3=s3, inbox=inbox, patience=paused.patience(), wait_s=120).invoke(b"x", content_type=TIFF)
    assert len(paused.slept) < 40
    assert max(paused.slept) == 5.0
    assert aws.asked[-1].headers["x-amzn-sagemaker-requestttlseconds"] == "120", "AWS forgets it when we do"


def test_kinds_that_lack_what_they_need_are_one_line(aws: Answering) -> None:
    with pytest.raises(EndpointError, match="takes its input from S3: name a bucket"):
        invoker(aws, "async")
    with pytest.raises(EndpointError, match="holds several models: say which"):
        invoker(aws, "multi_model")
