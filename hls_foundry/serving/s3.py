"""Scenes from S3: only `s3://` URIs, only of buckets that the operator allows, only up to a size."""

from __future__ import annotations

import re
import threading
from typing import Any

from hls_foundry.errors import RequestError
from hls_foundry.serving.settings import ServingSettings
from hls_foundry.serving.spool import Spool

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)", re.DOTALL)
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404", "NotFound"}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AllAccessDisabled"}


PIECE_BYTES = 4 * 1024 * 1024


def is_uri(image: str) -> bool:
    """Whether `image` names a place (scheme:…) rather than being base64, in which no colon occurs."""
    return _SCHEME.match(image[:64]) is not None


def _received(stream: Any) -> Spool:
    """All of a stream, whose length is known to be in order: botocore raises for one that is shorter."""
    content = Spool()
    try:
        for piece in stream.iter_chunks(PIECE_BYTES):
            content.write(piece)
    except BaseException:
        content.close()
        raise
    return content


class S3Images:
    """Downloads images for requests. The client is made at the first use: it costs 0.7 s and 38 MB."""

    def __init__(self, settings: ServingSettings) -> None:
        self._allow = settings.s3_allow
        self._max_bytes = settings.max_body_bytes
        self._lock = threading.Lock()
        self._client: Any = None

    def fetch(self, uri: str) -> Spool:
        """The object, for the caller to close.

        Raises RequestError: 422 refused, absent or forbidden; 413 too large; 503 when S3 does not answer.
        """
        bucket, key = self._allowed(uri)
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            reply = self._s3().get_object(Bucket=bucket, Key=key)
            if reply["ContentLength"] > self._max_bytes:
                reply["Body"].close()
                raise RequestError(413, "image_too_large", f"the S3 object is larger than {self._max_bytes // 2**20} MB")
            content = _received(reply["Body"])
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise RequestError(422, "no_such_image", f"there is no object s3://{bucket}/{key[:200]}") from None
            if code in _FORBIDDEN:
                raise RequestError(422, "image_forbidden", f"the endpoint's role may not read s3://{bucket}/{key[:200]}") from None
            raise RequestError(503, "s3_unavailable", f"S3 answered {code or 'with an error'} for bucket {bucket}: try again") from None
        except (BotoCoreError, OSError) as error:
            raise RequestError(503, "s3_unavailable", f"S3 cannot be reached ({type(error).__name__}): try again") from None
        if not content.size:
            raise RequestError(422, "bad_image", f"s3://{bucket}/{key[:200]} is empty")
        return content

    def _allowed(self, uri: str) -> tuple[str, str]:
        """Bucket and key of an allowed URI; everything else is refused before anything is opened."""
        match = _URI.fullmatch(uri.strip())
        if match is None:
            scheme = _SCHEME.match(uri[:64])
            if scheme and scheme[1].lower() != "s3":
                raise RequestError(422, "image_refused", f"{scheme[1].lower()}: images are refused; give s3://BUCKET/KEY or base64")
            raise RequestError(422, "image_refused", "the S3 URI must read s3://BUCKET/KEY")
        bucket, key = match[1], match[2]
        if not self._allow:
            raise RequestError(422, "image_refused", "this endpoint takes no s3:// images: its operator allowed no bucket (HLS_S3_ALLOW)")
        if bucket not in self._allow:
            raise RequestError(422, "image_refused", f"bucket {bucket} is not among those that this endpoint may read (HLS_S3_ALLOW)")
        return bucket, key

    def _s3(self) -> Any:
        with self._lock:
            if self._client is None:
                import boto3
                from botocore.config import Config

                config = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 2})
                self._client = boto3.client("s3", config=config)
            return self._client
