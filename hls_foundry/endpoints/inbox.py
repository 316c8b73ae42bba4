"""A place in S3 for scenes on their way to an endpoint: each is uploaded under a key of its own and removed when its request is over."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hls_foundry.endpoints.aws import aws_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class S3Inbox:
    """`s3://BUCKET/PREFIX/` as a place for requests. `client`: a boto3 S3 client. `kms_key`: encrypts them; none: as the bucket does."""

    client: Any
    bucket: str
    prefix: str
    kms_key: str | None = None

    @contextmanager
    def holding(self, content: bytes | Path, *, suffix: str = "") -> Iterator[str]:
        """The s3:// URI of `content` (bytes, or a file, which is sent in parts) for as long as the context lasts.

        The object is removed afterwards, also after errors; one that may not be removed is named in the log.
        Raises EndpointError (one line) where S3 refuses the upload.
        """
        key = "/".join(filter(None, [self.prefix.strip("/"), f"{uuid.uuid4().hex}{suffix}"]))
        uri = f"s3://{self.bucket}/{key}"
        try:
            with aws_errors(f"uploading to s3://{self.bucket}"):
                self._put(key, content)
            yield uri
        finally:
            remove(self.client, uri)

    def _put(self, key: str, content: bytes | Path) -> None:
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}
        if isinstance(content, bytes):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **encryption)
        else:
            self.client.upload_file(str(content), self.bucket, key, ExtraArgs=encryption)


def remove(client: Any, uri: str) -> None:
    """Delete an object of ours; a failure is only logged, since by then the answer is there."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        log.warning("%s stays behind (%s): delete it by hand", uri, type(error).__name__)
