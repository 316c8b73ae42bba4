"""Uploads to S3 and back, over HTTP against moto: checksums, what is not sent twice, what an interruption leaves."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from hls_foundry.endpoints.aws import Aws, AwsSettings, NoAnswer
from hls_foundry.endpoints.s3 import Attributes, Location, S3Objects, parse_uri
from hls_foundry.errors import EndpointError
from tests.endpoints.amazon import ACCOUNT, REGION, answering

MIB = 1 << 20
PART = 5 * MIB
TO = Location("models", "hls-foundry/burn_scars/3-abc/model.tar.gz")


@pytest.fixture
def s3(aws: Aws) -> S3Objects:
    objects = S3Objects(aws, part=PART)
    objects.aws.client("s3").create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    return objects


def file_of(folder: Path, size: int, seed: int = 0) -> tuple[Path, str]:
    content = (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]
    path = folder / f"{size}-{seed}"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@contextmanager
def requests(s3: S3Objects) -> Iterator[list[str]]:
    """Names of the operations that the client calls meanwhile, as they go out."""
    calls: list[str] = []

    def note(model: Any, **_: Any) -> None:
        calls.append(model.name)

    events = s3.aws.client("s3").meta.events
    events.register("before-call.s3", note)
    try:
        yield calls
    finally:
        events.unregister("before-call.s3", note)


@pytest.mark.parametrize("size", [1000, PART, 2 * PART + 1000])
def test_an_object_comes_back_as_it_was_sent(size: int, s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, size)
    assert s3.upload(path, TO, sha256=digest)
    assert s3.download(TO, tmp_path / "back", sha256=digest) == digest
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert s3.digest(TO) == digest
    assert [entry.name for entry in tmp_path.glob(".*")] == []


def test_the_service_checks_each_part(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 2 * PART + 1000)
    s3.upload(path, TO, sha256=digest)
    head = s3.aws.client("s3").head_object(Bucket=TO.bucket, Key=TO.key, ChecksumMode="ENABLED")
    content = path.read_bytes()
    parts = b"".join(hashlib.sha256(content[start : start + PART]).digest() for start in range(0, len(content), PART))
    assert head["ChecksumSHA256"].partition("-")[0] == base64.b64encode(hashlib.sha256(parts).digest()).decode()
    assert head["Metadata"]["sha256"] == digest


@pytest.mark.parametrize("size", [1000, 2 * PART + 1000])
def test_what_is_there_is_neither_sent_nor_read_again(size: int, s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, size)
    assert s3.upload(path, TO, sha256=digest)
    with requests(s3) as calls:
        assert not s3.upload(path, TO, sha256=digest)
    assert calls == ["ListMultipartUploads", "HeadObject"]


def test_an_object_of_other_bytes_with_the_same_digest_in_its_metadata_is_replaced(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    other = bytes(1000)
    s3.aws.client("s3").put_object(Bucket=TO.bucket, Key=TO.key, Body=other, Metadata={"sha256": digest}, ChecksumAlgorithm="SHA256")
    assert s3.upload(path, TO, sha256=digest)
    assert s3.digest(TO) == digest


def test_an_object_without_a_checksum_of_the_service_is_read(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    s3.aws.client("s3").put_object(Bucket=TO.bucket, Key=TO.key, Body=path.read_bytes(), Metadata={"sha256": digest})
    with requests(s3) as calls:
        assert not s3.upload(path, TO, sha256=digest)
    assert "GetObject" in calls


def test_progress_counts_bytes_up_to_all_of_them_and_again_for_reading_back(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 2 * PART + 1000)
    seen: list[tuple[int, int]] = []
    s3.upload(path, TO, sha256=digest, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {path.stat().st_size}
    assert [done for done, total in seen].count(path.stat().st_size) == 2


def test_metadata_tags_and_the_key_go_along(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    plain = Attributes(metadata={"task": "burn_scars"}, tags={"hls-foundry": "burn scars/3"})
    s3.upload(path, TO, sha256=digest, attributes=plain)
    client = s3.aws.client("s3")
    assert client.get_object_tagging(Bucket=TO.bucket, Key=TO.key)["TagSet"] == [{"Key": "hls-foundry", "Value": "burn scars/3"}]
    assert s3.upload(path, TO, sha256=digest, attributes=Attributes(kms_key=key))  # there, but not encrypted as asked
    head = client.head_object(Bucket=TO.bucket, Key=TO.key)
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)
    assert not s3.upload(path, TO, sha256=digest, attributes=Attributes(kms_key=key))


def test_what_is_read_back_must_be_what_was_sent(s3: S3Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.s3.models import S3Backend

    put = S3Backend.put_object

    def damaging(backend: Any, bucket: str, key: str, value: bytes, **options: Any) -> Any:
        return put(backend, bucket, key, value[:-1] + b"?", **options)

    monkeypatch.setattr(S3Backend, "put_object", damaging)
    path, digest = file_of(tmp_path, 1000)
    with pytest.raises(EndpointError, match=r"what came back is not what was sent \(\w{12}\); it was removed"):
        s3.upload(path, TO, sha256=digest)
    assert "Contents" not in s3.aws.client("s3").list_objects_v2(Bucket=TO.bucket)


def test_an_object_that_was_changed_is_not_handed_out(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    s3.upload(path, TO, sha256=digest)
    s3.aws.client("s3").put_object(Bucket=TO.bucket, Key=TO.key, Body=b"changed")
    with pytest.raises(EndpointError, match=f"was changed: its SHA-256 is .*, not {digest[:12]} as published"):
        s3.download(TO, tmp_path / "back", sha256=digest)
    assert not (tmp_path / "back").exists()


def test_an_interrupted_upload_leaves_nothing(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 12 * PART)

    sent: list[int] = []

    def interrupt(done: int, total: int) -> None:
        if PART < done < total // 2 and not sent:
            sent.append(done)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        s3.upload(path, TO, sha256=digest, progress=interrupt)
    client = s3.aws.client("s3")
    assert sent
    assert "Contents" not in client.list_objects_v2(Bucket=TO.bucket)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=TO.bucket)
    assert s3.upload(path, TO, sha256=digest)


def test_what_a_killed_upload_left_goes_after_an_hour(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    client = s3.aws.client("s3")
    client.create_multipart_upload(Bucket=TO.bucket, Key=TO.key)
    client.create_multipart_upload(Bucket=TO.bucket, Key=f"{TO.key}.other")
    (began, _) = [upload["Initiated"] for upload in client.list_multipart_uploads(Bucket=TO.bucket)["Uploads"]]

    def left() -> list[str]:
        return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=TO.bucket).get("Uploads", [])]

    S3Objects(s3.aws, now=lambda: began + timedelta(minutes=59)).upload(path, TO, sha256=digest)
    assert left() == [TO.key, f"{TO.key}.other"]
    S3Objects(s3.aws, now=lambda: datetime.now(UTC)).upload(path, TO, sha256=digest)
    assert left() == [f"{TO.key}.other"]


def test_a_missing_bucket_is_said_plainly(s3: S3Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, 1000)
    with pytest.raises(EndpointError, match=r"^s3://nowhere: the bucket does not exist: create it"):
        s3.check_bucket("nowhere")
    with pytest.raises(EndpointError, match="the bucket does not exist"):
        s3.upload(path, Location("nowhere", "x"), sha256=digest)
    s3.check_bucket("models")


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (400, "ExpiredToken", "the AWS credentials have expired"),
        (403, "InvalidAccessKeyId", "AWS does not know these credentials"),
        (403, "AccessDenied", "access denied: you need the permission s3:ListBucket"),
    ],
)
def test_what_a_head_request_does_not_tell_is_asked_for(
    status: int, code: str, line: str, aws_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda method, path: (status, f"<Error><Code>{code}</Code><Message>x</Message></Error>")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(EndpointError, match=f"s3://models: {line}"):
            S3Objects(Aws()).check_bucket("models")


def test_a_bucket_in_another_region_is_refused_with_its_region(s3: S3Objects) -> None:
    with pytest.raises(EndpointError, match=f"the bucket is in {REGION}, not in eu-west-1: set aws.region to {REGION}"):
        S3Objects(Aws(AwsSettings(region="eu-west-1"))).check_bucket("models")


def test_a_missing_object_is_said_plainly(s3: S3Objects, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"s3://models/hls-foundry/.*: there is no such object"):
        s3.download(TO, tmp_path / "back")
    s3.delete(TO)


def test_access_denied_names_the_permission(s3: S3Objects, tmp_path: Path, aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = file_of(tmp_path, 1000)
    iam = s3.aws.client("iam")
    iam.create_user(UserName="reader")
    reading = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:List*","s3:GetObject"],"Resource":"*"}]}'
    iam.put_user_policy(UserName="reader", PolicyName="reading", PolicyDocument=reading)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    httpx.post(f"{aws_environment}/moto-api/reset-auth", content="0").raise_for_status()
    try:
        with pytest.raises(EndpointError, match="access denied: you need the permission") as caught:
            S3Objects(Aws()).upload(path, TO, sha256=digest)
        assert "PutObject" in str(caught.value)
    finally:
        httpx.post(f"{aws_environment}/moto-api/reset-auth", content="inf").raise_for_status()


def test_without_a_network_nothing_hangs(s3: S3Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        objects = S3Objects(Aws())
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
        with pytest.raises(NoAnswer, match="does not answer"):
            objects.check_bucket("models")


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3://models", "s3://models/", "http://models/x", "s3://UPPER/x", "s3://models/a b", "/models/x"]
)
def test_what_is_no_address_of_an_object_is_refused(uri: str) -> None:
    with pytest.raises(EndpointError, match="must read s3://BUCKET/KEY"):
        parse_uri(uri)


def test_an_address_comes_apart_and_together() -> None:
    assert parse_uri(TO.uri) == TO


def test_nothing_secret_is_logged(s3: S3Objects, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="hls_foundry")
    path, digest = file_of(tmp_path, 1000)
    s3.upload(path, TO, sha256=digest)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in caplog.text
