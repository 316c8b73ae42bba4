"""Credentials that do not suffice are refused by each stand-in in the words and the format of its AWS service."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from stacks.aws.rehearsal.credentials import EXPIRED_KEY_ID, KEY_ID, REGION
from tests.aws.rehearsed import Account

CALLS = {
    "s3": lambda client: client.list_buckets(),
    "sts": lambda client: client.get_caller_identity(),
    "iam": lambda client: client.list_roles(),
    "sagemaker": lambda client: client.list_endpoints(),
    "ecr": lambda client: client.describe_repositories(),
    "logs": lambda client: client.describe_log_groups(),
    "application-autoscaling": lambda client: client.describe_scalable_targets(ServiceNamespace="sagemaker"),
    "service-quotas": lambda client: client.list_service_quotas(ServiceCode="sagemaker"),
    "sagemaker-runtime": lambda client: client.invoke_endpoint(EndpointName="none", Body=b"x"),
}


def code(service: str, key: str = KEY_ID, token: str | None = None, region: str = REGION, **options: Any) -> str:
    """What the service answers; empty for a success. Addresses come from the environment."""
    session = boto3.Session(aws_access_key_id=key, aws_secret_access_key="any", aws_session_token=token, region_name=region)
    try:
        CALLS[service](session.client(service, config=Config(retries={"total_max_attempts": 1}, **options)))
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.usefixtures("aws_account")
@pytest.mark.parametrize("service", CALLS)
def test_expired_and_unknown_keys_are_refused(service: str) -> None:
    expired = "ExpiredToken" if service in ("s3", "sts", "iam") else "ExpiredTokenException"
    assert code(service, EXPIRED_KEY_ID) == code(service, token="expired") == expired
    unknown = {"s3": "InvalidAccessKeyId", "sts": "InvalidClientTokenId", "iam": "InvalidClientTokenId"}
    assert code(service, "AKIAOFSOMEBODYELSE01") == unknown.get(service, "UnrecognizedClientException")
    assert code(service) == ("ValidationError" if service == "sagemaker-runtime" else "")


@pytest.mark.usefixtures("aws_account")
def test_a_request_without_a_signature_is_refused() -> None:
    assert code("s3", signature_version=UNSIGNED) == "AccessDenied"
    assert code("sagemaker", signature_version=UNSIGNED) == "MissingAuthenticationTokenException"


def test_keys_of_an_assumed_role_are_good_everywhere(aws_account: Account) -> None:
    given = aws_account.client("sts").assume_role(RoleArn=aws_account.prepared.role, RoleSessionName="test")["Credentials"]
    for service, expected in (("s3", ""), ("sagemaker", ""), ("sagemaker-runtime", "ValidationError")):
        assert code(service, given["AccessKeyId"], given["SessionToken"]) == expected


def test_a_presigned_address_is_good(aws_account: Account) -> None:
    import httpx

    aws_account.put("open", b"content")
    key = {"Bucket": aws_account.prepared.bucket, "Key": f"{aws_account.prefix}/open"}
    assert httpx.get(aws_account.s3.generate_presigned_url("get_object", Params=key), trust_env=False).content == b"content"
