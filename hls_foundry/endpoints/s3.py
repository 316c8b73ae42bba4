"""Files as objects in S3: sent in parts with checksums, not sent twice, and read back to make sure."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hls_foundry.endpoints.aws import Aws, aws_errors, error_code
from hls_foundry.endpoints.settings import BUCKET
from hls_foundry.errors import EndpointError
from hls_foundry.progress import Progress

log = logging.getLogger(__name__)

PART = 8 << 20
"""Bytes of a part: 10,000 parts of it, the most that S3 takes, are ten times the largest bundle."""

READ = 32 << 20
"""Bytes fetched by one request; reading back holds at most ten of them in memory."""

THREADS = 8
FORGOTTEN = timedelta(hours=1)
"""Age from which an unfinished upload of the very same object counts as left by a process that was killed."""

_URI = re.compile(rf"s3://({BUCKET})/([^\s]+)")


@dataclass(frozen=True)
class Location:
    """An object in S3."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_uri(uri: str) -> Location:
    """Bucket and key of s3://BUCKET/KEY. Raises EndpointError."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise EndpointError(f"{uri!r:.200} is no address of an object in S3: it must read s3://BUCKET/KEY")
    return Location(match[1], match[2])


@dataclass(frozen=True)
class Attributes:
    """What an object is sent with. Metadata and tags are readable by many: ids only, no secrets."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    kms_key: str | None = None


class S3Objects:
    """Objects of the buckets that `aws` may use."""

    def __init__(self, aws: Aws, *, part: int = PART, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`part`: bytes of a part, at least 5 MiB (S3's limit)."""
        self.aws = aws
        self._part = part
        self._now = now

    def check_bucket(self, bucket: str) -> None:
        """Raises EndpointError (one line): no such bucket, of somebody else, in another region than ours."""
        what = f"s3://{bucket}"
        with aws_errors(what), _head("NoSuchBucket"):
            region = self._head_bucket(bucket).get("BucketRegion")
        if region and region != self.aws.region:
            # botocore would follow; SageMaker would not: it takes models only from its own region.
            raise EndpointError(
                f"{what}: the bucket is in {region}, not in {self.aws.region}: set aws.region to {region}, or name another bucket"
            )

    def upload(
        self, path: Path, to: Location, *, sha256: str, attributes: Attributes | None = None, progress: Progress | None = None
    ) -> bool:
        """Send the file of digest `sha256` (hex), and read the object back; False where it was there already and nothing was sent.

        S3 checks the SHA-256 of each part as it comes, and shows the object once it has all of them: an upload that fails or is
        interrupted is aborted and leaves nothing; what a killed process left goes with a later upload of the same object.
        `progress` gets bytes, first of sending, then of reading back. Raises EndpointError (one line).
        https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
        """
        attributes = attributes or Attributes()
        with aws_errors(f"upload to {to.uri}"):
            self._forget_unfinished(to)
            if self._is_there(path, to, sha256, attributes):
                return False
            self._send(path, to, sha256, attributes, progress)
            if not self._holds(to, sha256, path.stat().st_size, progress):
                self._s3.delete_object(Bucket=to.bucket, Key=to.key)
                raise EndpointError(f"upload to {to.uri}: what came back is not what was sent ({sha256[:12]}); it was removed: run again")
        return True

    def download(self, source: Location, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> str:
        """Fetch the object to `path`, which appears once it is whole; returns its SHA-256 (hex).

        Raises EndpointError (one line), also where `sha256` is given and the object has another.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            with aws_errors(f"download of {source.uri}"), _head("NoSuchKey"):
                size = int(self._s3.head_object(Bucket=source.bucket, Key=source.key)["ContentLength"])
                with partial.open("wb") as file:
                    self._s3.download_fileobj(source.bucket, source.key, file, Callback=_counter(size, progress), Config=self._reading)
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 is not None and found != sha256:
                raise EndpointError(
                    f"{source.uri} was changed: its SHA-256 is {found[:12]}, not {sha256[:12]} as published; publish it again"
                )
            partial.replace(path)
        except OSError as error:
            raise EndpointError(f"download of {source.uri} to {path}: {error.strerror or error}: free some space") from None
        finally:
            partial.unlink(missing_ok=True)
        return found

    def digest(self, of: Location, *, progress: Progress | None = None) -> str:
        """SHA-256 (hex) of the object, streamed once. Raises EndpointError."""
        with aws_errors(of.uri), _head("NoSuchKey"):
            size = int(self._s3.head_object(Bucket=of.bucket, Key=of.key)["ContentLength"])
            return self._digest(of, size, progress)

    def delete(self, what: Location) -> None:
        """Raises EndpointError; an object that is not there is no error."""
        with aws_errors(f"deletion of {what.uri}"):
            self._s3.delete_object(Bucket=what.bucket, Key=what.key)

    def _head_bucket(self, bucket: str) -> dict[str, Any]:
        """HEAD has no body: expired credentials are a bare 400, unknown ones a 403. A GET that needs the same right says what it is."""
        from botocore.exceptions import ClientError

        try:
            found: dict[str, Any] = self._s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in ("400", "403"):
                self._s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
            raise
        return found

    # -- an upload, step by step

    def _is_there(self, path: Path, to: Location, sha256: str, attributes: Attributes) -> bool:
        """Whether S3 has these very bytes under the key: by the checksum that it made itself, else by reading them."""
        from botocore.exceptions import ClientError

        try:
            head = self._s3.head_object(Bucket=to.bucket, Key=to.key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchKey"):
                return False
            raise
        if head["ContentLength"] != path.stat().st_size or head["Metadata"].get("sha256") != sha256:
            return False
        if attributes.kms_key and head.get("ServerSideEncryption") != "aws:kms":
            return False
        checksum = str(head.get("ChecksumSHA256", "")).partition("-")[0]  # of parts it ends in -PARTS
        if checksum:
            return checksum in _checksums(path, self._part)
        return self._holds(to, sha256, head["ContentLength"], None)

    def _send(self, path: Path, to: Location, sha256: str, attributes: Attributes, progress: Progress | None) -> None:
        options: dict[str, Any] = {"ChecksumAlgorithm": "SHA256", "Metadata": {**attributes.metadata, "sha256": sha256}}
        if attributes.tags:
            options["Tagging"] = urlencode(attributes.tags)
        if attributes.kms_key:
            options |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": attributes.kms_key}
        size = path.stat().st_size
        with path.open("rb") as file:
            self._s3.upload_fileobj(
                file, to.bucket, to.key, ExtraArgs=options, Callback=_counter(size, progress), Config=self._transfer(self._part)
            )

    def _holds(self, of: Location, sha256: str, size: int, progress: Progress | None) -> bool:
        from botocore.exceptions import FlexibleChecksumError

        try:
            return self._digest(of, size, progress) == sha256
        except FlexibleChecksumError:  # botocore found it out before us, by the checksum that S3 keeps
            return False

    def _digest(self, of: Location, size: int, progress: Progress | None) -> str:
        """Streamed by boto3's transfer manager, which fetches ranges beside each other and again where a connection breaks."""
        stream = _Hash()
        self._s3.download_fileobj(of.bucket, of.key, stream, Callback=_counter(size, progress), Config=self._reading)
        return stream.sha256.hexdigest()

    def _forget_unfinished(self, to: Location) -> None:
        """Abort what killed processes left of uploads of this object: it cannot be seen, but is paid for."""
        from botocore.exceptions import ClientError

        try:
            uploads = self._s3.list_multipart_uploads(Bucket=to.bucket, Prefix=to.key).get("Uploads", [])
            for upload in uploads:
                if upload["Key"] == to.key and self._now() - upload["Initiated"] > FORGOTTEN:
                    self._s3.abort_multipart_upload(Bucket=to.bucket, Key=to.key, UploadId=upload["UploadId"])
        except ClientError as error:
            if error_code(error) not in ("AccessDenied", "NoSuchUpload", "NotImplemented"):
                raise
            log.info("%s: unfinished uploads cannot be looked for (%s)", to.uri, error_code(error))

    @property
    def _s3(self) -> Any:
        return self.aws.client("s3")

    def _transfer(self, part: int, threads: int = THREADS) -> Any:
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=threads)

    @property
    def _reading(self) -> Any:
        return self._transfer(READ, threads=4)


class _Hash:
    """A file to write to that keeps only the digest; the transfer manager writes to what cannot seek in order."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return len(content)


def _checksums(path: Path, part: int) -> set[str]:
    """The checksums (base64) that S3 gives the file: its SHA-256 when it came in one, else the SHA-256 of its parts' SHA-256."""
    whole, parts = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(part):
            whole.update(block)
            parts.update(hashlib.sha256(block).digest())
    return {base64.b64encode(digest.digest()).decode() for digest in (whole, parts)}


def _counter(total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """boto3's callback, which gets what was just moved, from several threads."""
    if progress is None:
        return None
    lock, done = threading.Lock(), 0

    def count(moved: int) -> None:
        nonlocal done
        with lock:
            done = min(total, max(0, done + moved))  # a part that is sent again is taken off first
            progress(done, total)

    return count


@contextmanager
def _head(code: str) -> Iterator[None]:
    """HEAD has no body to say what is missing: 404 becomes `code`."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error_code(error) == "404":
            raise ClientError({"Error": {"Code": code, "Message": "Not Found"}}, error.operation_name) from None
        raise
