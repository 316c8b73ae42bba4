"""run.py doctor for a stack on AWS, against the rehearsal: what is right, and each thing that can be wrong, with what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from cli import doctor_aws
from cli.doctor import Check
from cli.doctor_aws import SERVERLESS_QUOTA, check_account, trusts_sagemaker, wanted_architecture
from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.settings import SageMakerSettings
from stacks.aws.rehearsal.account import TRUST
from stacks.aws.rehearsal.credentials import EXPIRED_KEY_ID, EXPIRED_TOKEN, KEY_ID
from stacks.definition import load_stack
from tests.aws.rehearsed import Account

EVERYTHING = ["region", "credentials", "bucket", "bucket", "role", "image", "quota", "endpoints"]
DOCKER = "application/vnd.docker.distribution.manifest"
Doctor = Callable[..., list[Check]]
known_aws = lru_cache(Aws)


@pytest.fixture
def doctor(tmp_path: Path, aws_account: Account, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """doctor(endpoint={…}, publish={…}): the checks of a stack that is right but for these; None leaves the endpoint out.

    `known`: with the clients of the tests before, which cost half a second each.
    """
    bucket = aws_account.prepared.bucket

    def run(endpoint: dict[str, Any] | None = {}, publish: dict[str, Any] | None = None, *, known: bool = True) -> list[Check]:  # noqa: B006
        monkeypatch.setattr(doctor_aws, "Aws", known_aws if known else Aws)
        sagemaker = {"target": "sagemaker", "name": "hls-{task}", "role": aws_account.prepared.role, "image": aws_account.prepared.image}
        content: dict[str, Any] = {
            "components": [
                {"type": "orchestrator", "flavor": "local"},
                {"type": "artifact_store", "flavor": "s3", "configuration": {"path": f"s3://{bucket}/{aws_account.prefix}/zenml"}},
            ],
            "publish": {"bucket": bucket, "prefix": f"{aws_account.prefix}/published", **(publish or {})},
        }
        if endpoint is not None:
            content["endpoint"] = {**sagemaker, "s3_allow": [bucket], **endpoint}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        checks = list(check_account(load_stack("mine", {}, tmp_path)))
        for check in checks:
            assert "\n" not in check.found + check.remedy
            assert check.passed or check.remedy, f"{check.name} does not say what to do"
        assert "Contents" not in aws_account.s3.list_objects_v2(Bucket=bucket, Prefix=aws_account.prefix)
        return checks

    return run


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of these answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def failure(checks: list[Check], name: str) -> str:
    """What the one failed check says, which must be `name`'s."""
    (failed,) = (check for check in checks if not check.passed)
    assert failed.name == name
    return f"{failed.found}: {failed.remedy}"


def push(account: Account, tag: str, manifest: dict[str, Any]) -> str:
    """Another image in the rehearsal's repository; its address. Only its manifest counts."""
    repository, _, _ = account.prepared.image.rpartition(":")
    given = {"repositoryName": repository.rpartition("/")[2], "imageManifest": json.dumps({"schemaVersion": 2, **manifest})}
    account.client("ecr").put_image(**given, imageTag=f"{account.prefix}-{tag}")
    return f"{repository}:{account.prefix}-{tag}"


def images(media_type: str, architecture: str) -> dict[str, Any]:
    part = {"mediaType": f"{DOCKER}.v2+json", "digest": f"sha256:{'1' * 64}", "size": 2}
    return {"mediaType": media_type, "manifests": [{**part, "platform": {"architecture": architecture, "os": "linux"}}]}


def test_all_is_well_in_the_rehearsal_and_nothing_stays_in_the_bucket(doctor: Doctor, aws_account: Account) -> None:
    checks = doctor()
    assert [check.name for check in checks] == EVERYTHING
    assert all(check.passed for check in checks), checks
    found = [check.found for check in checks]
    assert found[0] == "eu-central-1"
    assert "123456789012" in found[1]
    assert "ml.m5.large for endpoint usage: 8, and 1 needed" in found[6]
    assert "amd64" in found[5]


def test_without_an_endpoint_only_what_publishing_needs_is_checked(doctor: Doctor) -> None:
    assert [check.name for check in doctor(None)] == EVERYTHING[:4]


def test_serverless_is_measured_by_its_concurrency(doctor: Doctor) -> None:
    assert f"{SERVERLESS_QUOTA}: 10, and 8 needed" in [check.found for check in doctor({"kind": "serverless", "max_concurrency": 8})]
    assert "ask for more" in failure(doctor({"kind": "serverless", "max_concurrency": 11}), "quota")


def test_too_few_instances(doctor: Doctor) -> None:
    said = failure(doctor({"autoscaling": {"min": 1, "max": 9}}), "quota")
    assert "ml.m5.large for endpoint usage: 8, and 9 needed" in said
    assert "servicequotas" in said


def test_an_update_needs_twice_the_instances(doctor: Doctor) -> None:
    assert any("an update in place needs 12 for a while" in check.found for check in doctor({"instances": 6}))


def test_missing_bucket(doctor: Doctor) -> None:
    assert "does not exist: create it" in failure(doctor(publish={"bucket": "nobody-made-this-bucket"}), "bucket")


def test_bucket_of_another_region(doctor: Doctor, aws_account: Account) -> None:
    bucket = f"{aws_account.prefix}-elsewhere"
    boto3.client("s3", region_name="eu-west-1").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    try:
        said = failure(doctor({"s3_allow": [bucket]}), "bucket")
    finally:
        aws_account.s3.delete_bucket(Bucket=bucket)
    assert "the bucket is in eu-west-1, not in eu-central-1" in said


def test_zenml_s_store_is_checked_as_who_writes_there(doctor: Doctor, aws_account: Account) -> None:
    assumed = {"aws": {"role_arn": aws_account.prepared.role}}
    checks = doctor(assumed, assumed)
    assert [check.name for check in checks] == EVERYTHING
    assert all(check.passed for check in checks), checks
    assert "assumed-role" in checks[1].found
    assert "by ZenML's store too, which does without the role" in checks[3].found


class OnlyForRoles(BaseHTTPRequestHandler):
    """S3 that lets nobody in but who has assumed a role."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refused = KEY_ID in self.headers["Authorization"]
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" if refused and self.command != "HEAD" else b""
        self.send_response(403 if refused else 200)
        self.send_header("x-amz-bucket-region", "eu-central-1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_DELETE = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        return None


def test_a_role_that_zenml_s_store_does_not_take_is_told(doctor: Doctor, aws_account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assumed = {"aws": {"role_arn": aws_account.prepared.role}}
    with serving(OnlyForRoles) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        said = failure(doctor(assumed, assumed, known=False), "bucket")
    assert said.startswith("ZenML's store does not take the role or profile of the stack file: s3://")
    assert "export AWS_PROFILE" in said


def test_missing_role(doctor: Doctor) -> None:
    assert "docs/aws/role-trust.json" in failure(doctor({"role": "nobody"}), "role")


def test_role_that_sagemaker_may_not_take(doctor: Doctor, aws_account: Account) -> None:
    trust = json.loads(json.dumps(TRUST).replace("sagemaker", "lambda"))
    iam = aws_account.client("iam")
    iam.create_role(RoleName=aws_account.prefix, AssumeRolePolicyDocument=json.dumps(trust))
    try:
        said = failure(doctor({"role": aws_account.prefix}), "role")
    finally:
        iam.delete_role(RoleName=aws_account.prefix)
    assert "does not trust sagemaker.amazonaws.com" in said
    assert f"update-assume-role-policy --role-name {aws_account.prefix}" in said


def test_role_of_that_name_elsewhere(doctor: Doctor, aws_account: Account) -> None:
    other = aws_account.prepared.role.replace(":role/", ":role/service-role/")
    assert aws_account.prepared.role in failure(doctor({"role": other}), "role")


@pytest.mark.parametrize(
    ("old", "new", "word"), [(":latest", ":no-such-tag", "ImageNotFound"), ("serve:", "serving:", "RepositoryNotFound")]
)
def test_missing_image(doctor: Doctor, aws_account: Account, old: str, new: str, word: str) -> None:
    said = failure(doctor({"image": aws_account.prepared.image.replace(old, new)}), "image")
    assert word in said
    assert "build and push it" in said


def test_image_of_another_region(doctor: Doctor, aws_account: Account) -> None:
    said = failure(doctor({"image": aws_account.prepared.image.replace("eu-central-1", "eu-west-1")}), "image")
    assert "push the image to ECR in eu-central-1" in said


def test_image_for_other_processors(doctor: Doctor, aws_account: Account) -> None:
    arm = push(aws_account, "arm", images(f"{DOCKER}.list.v2+json", "arm64"))
    said = failure(doctor({"image": arm}), "image")
    assert "is for arm64, and ml.m5.large needs amd64" in said
    assert "--platform linux/amd64" in said
    assert all(check.passed for check in doctor({"image": arm, "instance_type": "ml.c7g.large"}))


def test_image_in_a_format_that_sagemaker_refuses(doctor: Doctor, aws_account: Account) -> None:
    oci = push(aws_account, "oci", images("application/vnd.oci.image.index.v1+json", "amd64"))
    said = failure(doctor({"image": oci}), "image")
    assert "Docker's own format only" in said
    assert "--provenance=false --output type=docker" in said


def test_without_a_region_nothing_else_is_asked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert "set aws.region" in failure(doctor(known=False), "region")


def test_expired_credentials_are_the_last_that_is_asked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", EXPIRED_KEY_ID)
    monkeypatch.setenv("AWS_SESSION_TOKEN", EXPIRED_TOKEN)
    checks = doctor(known=False)
    assert [check.name for check in checks] == ["region", "credentials"]
    assert "have expired: run `aws sso login`" in failure(checks, "credentials")


class Registry(BaseHTTPRequestHandler):
    """ECR with one single image, whose configuration is behind a signed address: the rehearsal's ECR keeps no blobs."""

    architecture = "arm64"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        manifest = {"schemaVersion": 2, "mediaType": f"{DOCKER}.v2+json", "config": {"digest": f"sha256:{'2' * 64}", "size": 20}}
        replies = {
            "DescribeImages": {"imageDetails": [{"imageDigest": f"sha256:{'3' * 64}", "imageManifestMediaType": f"{DOCKER}.v2+json"}]},
            "BatchGetImage": {"images": [{"imageManifest": json.dumps(manifest)}], "failures": []},
            "GetDownloadUrlForLayer": {"downloadUrl": f"http://{self.headers['Host']}/blob?X-Amz-Signature=secret"},
        }
        self._answer(replies[self.headers["X-Amz-Target"].rpartition(".")[2]])

    def do_GET(self) -> None:
        self._answer({"architecture": self.architecture, "os": "linux"})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def registry(aws_account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serving(Registry) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", url)
        yield


@pytest.mark.usefixtures("registry")
def test_a_single_image_says_its_architecture_in_its_configuration(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failure(doctor(known=False), "image")
    assert "is for arm64, and ml.m5.large needs amd64" in said
    assert "secret" not in said
    monkeypatch.setattr(Registry, "architecture", "amd64")
    assert all(check.passed for check in doctor(known=False))


@pytest.mark.parametrize(
    ("change", "trusted"),
    [
        ({}, True),
        ({"Action": ["sts:AssumeRole", "sts:TagSession"]}, True),
        ({"Principal": {"Service": ["ec2.amazonaws.com", "sagemaker.amazonaws.com"]}}, True),
        ({"Effect": "Deny"}, False),
        ({"Action": "sts:TagSession"}, False),
        ({"Principal": "*"}, False),
        ({"Principal": {"AWS": "arn:aws:iam::123456789012:root"}}, False),
    ],
)
def test_trust_is_read_as_iam_writes_it(change: dict[str, Any], trusted: bool) -> None:
    statement = {**TRUST["Statement"][0], **change}  # type: ignore[dict-item]
    assert trusts_sagemaker({"Version": "2012-10-17", "Statement": [statement]}) is trusted
    assert trusts_sagemaker({"Version": "2012-10-17", "Statement": statement}) is trusted


@pytest.mark.parametrize(
    ("instance_type", "kind", "architecture"),
    [
        ("ml.m5.large", "realtime", "amd64"),
        ("ml.c7g.large", "realtime", "arm64"),
        ("ml.m6gd.xlarge", "realtime", "arm64"),
        ("ml.g5.xlarge", "realtime", "amd64"),
        ("ml.g4dn.xlarge", "realtime", "amd64"),
        ("ml.c7g.large", "serverless", "amd64"),
    ],
)
def test_graviton_instances_need_images_for_arm(instance_type: str, kind: str, architecture: str) -> None:
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/serve:1"
    settings = SageMakerSettings.model_validate({"name": "e", "role": "r", "image": image, "kind": kind, "instance_type": instance_type})
    assert wanted_architecture(settings) == architecture
