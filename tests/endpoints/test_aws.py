"""Who we are to AWS, and what goes wrong with it in one line, over HTTP against moto's STS."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hls_foundry.endpoints.aws import Aws, AwsSettings, NoAnswer, aws_errors
from hls_foundry.errors import EndpointError
from tests.endpoints.amazon import ACCOUNT, REGION, SECRET, answering

ROLE = f"arn:aws:iam::{ACCOUNT}:role/Publisher"


def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "config").write_text(content)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def one_line(action: object) -> str:
    """The error's line; it must not give away what is secret."""
    assert callable(action)
    with pytest.raises(EndpointError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    return line


def test_importing_does_not_cost_boto3() -> None:
    code = "import sys, hls_foundry.endpoints.aws, hls_foundry.endpoints.s3; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_credentials_come_from_the_environment(aws_environment: str) -> None:
    aws = Aws()
    assert aws.account() == ACCOUNT
    assert aws.region == REGION
    assert aws.client("s3") is aws.client("s3")
    assert aws.client("s3").meta.config.user_agent_extra.startswith("hls-foundry/")


def test_a_region_of_the_settings_wins_and_aws_region_is_the_last_resort(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Aws(AwsSettings(region="eu-west-1")).client("sts").meta.region_name == "eu-west-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert Aws().client("s3").meta.region_name == "us-west-2"
    monkeypatch.delenv("AWS_REGION")
    assert "AWS_DEFAULT_REGION" in one_line(lambda: Aws().client("s3"))


def test_a_profile_has_its_own_credentials_and_region(aws_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "aws_access_key_id = AKIAI44QH8DHBEXAMPLE\naws_secret_access_key = other"
    profile(tmp_path, monkeypatch, f"[profile science]\nregion = eu-north-1\n{keys}\n")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    aws = Aws(AwsSettings(profile="science"))
    assert aws.region == "eu-north-1"
    assert aws._session().get_credentials().access_key == "AKIAI44QH8DHBEXAMPLE"


def test_the_role_is_assumed_with_its_external_id(aws_environment: str) -> None:
    from moto.sts.models import sts_backends

    aws = Aws(AwsSettings(role_arn=ROLE, external_id="partner-7", session_name="chapter"))
    assert aws.caller().arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/Publisher/chapter"
    aws.client("s3").list_buckets()
    (asked,) = sts_backends[ACCOUNT]["aws"].assumed_roles  # once for both clients
    assert asked.external_id == "partner-7"
    assert SECRET not in repr(aws)
    assert "partner-7" not in repr(aws)


def test_credentials_of_a_role_are_renewed_before_they_end(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.sts.models import AssumedRole, sts_backends

    soon = property(lambda _: datetime.now(UTC) + timedelta(minutes=5), lambda _, value: None)
    monkeypatch.setattr(AssumedRole, "expiration", soon, raising=False)
    s3 = Aws(AwsSettings(role_arn=ROLE)).client("s3")
    for _ in range(3):
        s3.list_buckets()
    assert len(sts_backends[ACCOUNT]["aws"].assumed_roles) >= 3


def test_no_credentials_is_one_line(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials: run `aws sso login`" in one_line(Aws().account)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    assert "half of the AWS credentials is missing" in one_line(Aws().account)


def test_an_unknown_profile_is_named(aws_environment: str) -> None:
    assert "no profile 'nobody' in ~/.aws/config" in one_line(Aws(AwsSettings(profile="nobody")).account)


def test_an_sso_session_that_was_never_opened_says_how_to(aws_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(
        tmp_path,
        monkeypatch,
        f"[profile sso]\nsso_session = mine\nsso_account_id = {ACCOUNT}\nsso_role_name = Science\nregion = {REGION}\n"
        f"[sso-session mine]\nsso_region = {REGION}\nsso_start_url = https://example.awsapps.com/start\n",
    )
    assert "run `aws sso login`" in one_line(Aws(AwsSettings(profile="sso")).account)


def test_what_a_credential_process_printed_is_not_told(aws_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(tmp_path, monkeypatch, f"[profile tool]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 1'\nregion = {REGION}\n")
    assert "cannot be fetched (by custom-process)" in one_line(Aws(AwsSettings(profile="tool")).account)


REFUSAL = "<ErrorResponse><Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error></ErrorResponse>"


@pytest.mark.parametrize(
    ("code", "message", "line"),
    [
        ("ExpiredToken", "The security token included in the request is expired", "the AWS credentials have expired: run `aws sso login`"),
        ("InvalidClientTokenId", "The security token is invalid", "AWS does not know these credentials"),
        ("SignatureDoesNotMatch", "x", "AWS does not know these credentials"),
        ("RequestTimeTooSkewed", "x", "set the clock"),
        ("AccessDenied", "User: u is not authorized to perform: sts:GetCallerIdentity", "the permission sts:GetCallerIdentity"),
        (
            "AccessDenied",
            "not authorized to perform: kms:GenerateDataKey on resource: k",
            "the KMS key cannot be used (kms:GenerateDataKey)",
        ),
        ("KMS.DisabledException", "k is disabled", "the KMS key cannot be used (KMS.DisabledException)"),
        ("PermanentRedirect", "x", "another region"),
        ("MalformedInput", "a strange\nthing", "GetCallerIdentity was refused: MalformedInput: a strange thing"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(
    code: str, message: str, line: str, aws_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda method, path: (403, REFUSAL.format(code, message))) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        assert line in one_line(Aws().account)


def test_a_role_that_may_not_be_assumed_is_told_from_other_denials(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda method, path: (403, REFUSAL.format("AccessDenied", "not authorized to perform: sts:AssumeRole"))) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        aws = Aws(AwsSettings(role_arn=ROLE, external_id="wrong"))
        with pytest.raises(EndpointError, match=r"upload: the role of aws\.role_arn cannot be assumed"), aws_errors("upload"):
            aws.client("s3").list_buckets()


def test_throttling_is_tried_again_and_bounded(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def busy(method: str, path: str) -> tuple[int, str]:
        asked.append(path)
        return 400, REFUSAL.format("Throttling", "Rate exceeded")

    with answering(busy) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        aws = Aws()
        aws.client("sts")
        with pytest.raises(EndpointError, match="asks to slow down"), aws_errors("AWS"):
            aws.client("sts", attempts=2).get_caller_identity()
    assert len(asked) == 2


def test_no_network_is_told_from_a_refusal(aws_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound, not listening: connections are refused at once
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(NoAnswer, match=r"^who: 127\.0\.0\.1 does not answer \(EndpointConnectionError\)"), aws_errors("who"):
            Aws().client("sts", attempts=1).get_caller_identity()


def test_our_logs_have_no_secrets(aws_environment: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="hls_foundry")
    Aws(AwsSettings(role_arn=ROLE, external_id="partner-7")).account()
    assert SECRET not in caplog.text
