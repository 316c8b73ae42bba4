"""The folder of a multi-model endpoint in S3: TASK.tar.gz for every task, copied by S3 itself from the published archives.

The folder's name follows from the models, so an update fills another one, and the old one stays until the new models have passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from hls_foundry.endpoints.aws import aws_errors, error_code
from hls_foundry.endpoints.sagemaker.resources import Copy, Place, bucket_and_key
from hls_foundry.endpoints.settings import TAG
from hls_foundry.errors import EndpointError


def copy_models(s3: Any, endpoint: str, copies: Iterable[Copy]) -> None:
    """Make sure that the copies are there, each tagged with the endpoint's name. Raises EndpointError."""
    for copy in copies:
        bucket, key = bucket_and_key(copy.source)
        with aws_errors(f"copying {copy.source}"):
            source = _head(s3, bucket, key)
            if source is None:
                raise EndpointError(f"{copy.source} is not there any more: publish that model version again")
            there = _head(s3, copy.bucket, copy.key)
            # A copy of several parts, above 8 MB, has another ETag than its source: the size and our note of the source's ETag tell.
            etag = source["ETag"].strip('"')
            if there and there["Metadata"].get("copy-of") == etag and there["ContentLength"] == source["ContentLength"]:
                continue
            tagging = {"Tagging": urlencode({TAG: endpoint}), "TaggingDirective": "REPLACE"}
            metadata = {"Metadata": {"copy-of": etag}, "MetadataDirective": "REPLACE"}
            s3.copy({"Bucket": bucket, "Key": key}, copy.bucket, copy.key, ExtraArgs={**tagging, **metadata})


def remove_copies(s3: Any, endpoint: str, home: Place, *, keep: str = "") -> None:
    """Remove the endpoint's copies, but for those below the key `keep`; only objects with our tag. Raises EndpointError."""
    from botocore.exceptions import ClientError

    with aws_errors(f"removing the models in {home.uri}"):
        try:
            pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=home.bucket, Prefix=f"{home.prefix}models/"))
        except ClientError as error:
            if error_code(error) == "NoSuchBucket":
                return
            raise
        for key in (found["Key"] for page in pages for found in page.get("Contents", [])):
            if keep and key.startswith(keep):
                continue
            tags = s3.get_object_tagging(Bucket=home.bucket, Key=key)["TagSet"]
            if {"Key": TAG, "Value": endpoint} in tags:
                s3.delete_object(Bucket=home.bucket, Key=key)


def _head(s3: Any, bucket: str, key: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_code(error) in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return found
