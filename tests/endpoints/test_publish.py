"""A bundle on its way to a folder or to S3 (moto over HTTP): the archive, its name, what goes along, what is said when it cannot."""

from __future__ import annotations

import hashlib
import shutil
import socket
from pathlib import Path

import pytest

from hls_foundry.endpoints.aws import Aws, AwsSettings, NoAnswer
from hls_foundry.endpoints.publish import publish_bundle
from hls_foundry.endpoints.s3 import S3Objects, parse_uri
from hls_foundry.endpoints.settings import PublishSettings
from hls_foundry.errors import BundleError, EndpointError
from hls_foundry.models.bundle import load_bundle, read_manifest, unpack_bundle
from tests.endpoints.amazon import REGION, SECRET
from tests.serving.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    manifest = read_manifest(folder)
    facts = {
        "training_digest": "a1b2c3",
        "data_fingerprint": "d4e5",
        "code": "0123abc+changes",
        "source": "https://user:password@host/chips",
    }
    (folder / "model.json").write_text(manifest.model_copy(update={"lineage": facts}).model_dump_json())
    return folder


@pytest.fixture
def s3(aws: Aws) -> S3Objects:
    objects = S3Objects(aws)
    objects.aws.client("s3").create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    return objects


IN_S3 = PublishSettings(bucket="models", prefix="science/hls")


def test_a_folder_holds_the_archive_by_task_and_version_with_its_digest(bundle: Path, tmp_path: Path) -> None:
    published = publish_bundle(bundle, PublishSettings(folder=str(tmp_path / "out")), task="burn_scars", version="3")
    archive = tmp_path / "out" / "burn_scars" / "3" / "model.tar.gz"
    assert published.uri == str(archive)
    assert published.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.with_name("model.tar.gz.sha256").read_text() == f"{published.sha256}  model.tar.gz\n"
    assert sorted(path.name for path in archive.parent.iterdir()) == ["model.tar.gz", "model.tar.gz.sha256"]


def test_a_relative_folder_counts_from_the_checkout(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_CHECKOUT", str(tmp_path))
    published = publish_bundle(bundle, PublishSettings(folder="some/where"), task="flood", version="1")
    assert published.uri == str(tmp_path / "some" / "where" / "flood" / "1" / "model.tar.gz")


def test_a_folder_that_cannot_be_written_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match=r"cannot publish to .*: .*; free space or choose another publish\.folder") as caught:
        publish_bundle(bundle, PublishSettings(folder=str(tmp_path / "file")), task="flood", version="1")
    assert "\n" not in str(caught.value)


def test_the_key_in_s3_holds_task_version_and_digest(bundle: Path, s3: S3Objects, tmp_path: Path) -> None:
    published = publish_bundle(bundle, IN_S3, task="burn_scars", version="3")
    assert published.uri == f"s3://models/science/hls/burn_scars/3-{published.sha256[:12]}/model.tar.gz"
    s3.download(parse_uri(published.uri), tmp_path / "model.tar.gz", sha256=published.sha256)
    assert load_bundle(unpack_bundle(tmp_path / "model.tar.gz", tmp_path / "back")).manifest.task == "burn_scars"


def test_folder_and_bucket_get_the_same_bytes_every_time(bundle: Path, s3: S3Objects, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for file in copied.iterdir():
        file.touch()
    folder = PublishSettings(folder=str(tmp_path / "out"))
    digests = {publish_bundle(path, place, task="t", version="1").sha256 for path in (bundle, copied) for place in (folder, IN_S3)}
    assert len(digests) == 1
    assert len(s3.aws.client("s3").list_objects_v2(Bucket="models")["Contents"]) == 1


def test_an_archive_that_was_published_before_goes_as_it_is(bundle: Path, s3: S3Objects, tmp_path: Path) -> None:
    first = publish_bundle(bundle, PublishSettings(folder=str(tmp_path / "out")), task="t", version="1")
    assert publish_bundle(Path(first.uri), IN_S3, task="t", version="1").sha256 == first.sha256
    again = publish_bundle(Path(first.uri), PublishSettings(folder=str(tmp_path / "other")), task="t", version="1")
    assert again.sha256 == first.sha256


def test_what_is_no_bundle_is_not_sent(s3: S3Objects, tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"nothing of the kind")
    for wrong in (tmp_path / "model.tar.gz", tmp_path):
        with pytest.raises(BundleError, match="is no model bundle"):
            publish_bundle(wrong, IN_S3, task="t", version="1")
    assert "Contents" not in s3.aws.client("s3").list_objects_v2(Bucket="models")


def test_publishing_again_sends_nothing(bundle: Path, s3: S3Objects) -> None:
    publish_bundle(bundle, IN_S3, task="burn_scars", version="3")
    before = s3.aws.client("s3").list_objects_v2(Bucket="models")["Contents"][0]["LastModified"]
    moved: list[int] = []
    publish_bundle(bundle, IN_S3, task="burn_scars", version="3", progress=lambda done, total: moved.append(done))
    assert moved == []
    assert s3.aws.client("s3").list_objects_v2(Bucket="models")["Contents"][0]["LastModified"] == before


def test_progress_counts_the_archives_bytes(bundle: Path, s3: S3Objects) -> None:
    moved: list[tuple[int, int]] = []
    published = publish_bundle(bundle, IN_S3, task="t", version="1", progress=lambda done, total: moved.append((done, total)))
    size = s3.aws.client("s3").head_object(Bucket="models", Key=parse_uri(published.uri).key)["ContentLength"]
    assert moved[-1] == (size, size)


def test_lineage_goes_along_without_what_may_be_secret(bundle: Path, s3: S3Objects) -> None:
    published = publish_bundle(bundle, IN_S3, task="burn_scars", version="3")
    where = {"Bucket": "models", "Key": parse_uri(published.uri).key}
    assert s3.aws.client("s3").head_object(**where)["Metadata"] == {
        "sha256": published.sha256,
        "task": "burn_scars",
        "model-version": "3",
        "training-digest": "a1b2c3",
        "data-fingerprint": "d4e5",
        "code": "0123abc+changes",
    }
    tags = s3.aws.client("s3").get_object_tagging(**where)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"hls-foundry": "burn_scars", "hls-foundry-version": "3"}


def test_the_role_of_the_stack_file_publishes(bundle: Path, s3: S3Objects) -> None:
    from moto.sts.models import sts_backends

    aws = AwsSettings(role_arn="arn:aws:iam::123456789012:role/Publisher", external_id="partner-7")
    publish_bundle(bundle, PublishSettings(bucket="models", aws=aws), task="t", version="1")
    assert sts_backends["123456789012"]["aws"].assumed_roles[-1].external_id == "partner-7"


def test_a_missing_bucket_is_found_before_anything_is_packed(bundle: Path, s3: S3Objects) -> None:
    with pytest.raises(EndpointError, match=r"^cannot publish: s3://nowhere: the bucket does not exist") as caught:
        publish_bundle(bundle, PublishSettings(bucket="nowhere"), task="t", version="1")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_line_says_where_to_publish_from(bundle: Path, s3: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(NoAnswer, match="--stack aws, on the login node") as caught:
            publish_bundle(bundle, IN_S3, task="t", version="1")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
