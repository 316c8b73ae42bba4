"""What the runtime needs of the control plane: objects of S3, and the containers' lines in CloudWatch Logs."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

from stacks.aws.rehearsal.credentials import REGION, ROLE_KEY_ID, ROLE_TOKEN, SECRET

log = logging.getLogger("rehearsal")
FLUSH_S = 0.1
LINE = 256_000  # bytes of one event, https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/cloudwatch_limits_cwl.html


class NoObject(Exception):
    """There is no such object, or it may not be read."""


class BadArchive(Exception):
    """An object is not a model.tar.gz."""


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises NoObject for what is no s3:// URI."""
    bucket, slash, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not slash:
        raise NoObject(uri)
    return bucket, key


class Cloud:
    """S3 and CloudWatch Logs at `url`, with the role of a container. boto3 is imported at the first use: it takes 0.7 s."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self.closing = False
        """The rehearsal is being taken down, its control plane with it: lines for its logs go nowhere."""

    def client(self, service: str, region: str = REGION) -> Any:
        with self._lock:
            if service + region not in self._clients:
                import boto3
                from botocore.config import Config

                config = Config(max_pool_connections=32, retries={"mode": "standard", "max_attempts": 3})
                self._clients[service + region] = boto3.client(
                    service, endpoint_url=self._url, region_name=region, aws_access_key_id=ROLE_KEY_ID, aws_secret_access_key=SECRET,
                    aws_session_token=ROLE_TOKEN, config=config,
                )  # fmt: skip
            return self._clients[service + region]

    def size(self, uri: str) -> int:
        """Of the object, in bytes. Raises NoObject."""
        from botocore.exceptions import ClientError

        bucket, key = split_uri(uri)
        try:
            return int(self.client("s3").head_object(Bucket=bucket, Key=key)["ContentLength"])
        except ClientError as error:
            raise NoObject(uri) from error

    def fetch(self, uri: str, target: Path) -> None:
        """Download the object. Raises NoObject."""
        from botocore.exceptions import ClientError

        bucket, key = split_uri(uri)
        try:
            reply = self.client("s3").get_object(Bucket=bucket, Key=key)
            with target.open("wb") as file:
                shutil.copyfileobj(reply["Body"], file, 2**20)
        except ClientError as error:
            raise NoObject(uri) from error

    def store(self, uri: str, body: bytes, content_type: str) -> None:
        """Write an object. Raises botocore's ClientError."""
        bucket, key = split_uri(uri)
        self.client("s3").put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)

    def unpack(self, uri: str, folder: Path) -> None:
        """The model.tar.gz at `uri` as files in `folder`, as SageMaker lays it out. Raises NoObject, BadArchive."""
        archive = folder.with_name(f"{folder.name}.tar.gz")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.fetch(uri, archive)
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            for path in (folder.parent, folder, *folder.rglob("*")):  # the user of a container is another
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise BadArchive(uri) from error
        finally:
            archive.unlink(missing_ok=True)


class LogStream:
    """One container's lines on their way to its stream in CloudWatch Logs."""

    def __init__(self, cloud: Cloud, region: str, group: str, name: str) -> None:
        self._cloud, self._region, self.group, self.name = cloud, region, group, name
        self._events: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._made = False

    def put(self, line: str) -> None:
        """Take a line; it is sent within FLUSH_S."""
        if line:
            self._events.append({"timestamp": int(time.time() * 1000), "message": line[:LINE]})
        if self._events and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._flush_soon())

    async def flush(self) -> None:
        """Return when all lines so far are there."""
        while self._task is not None and not self._task.done():
            await self._task

    async def _flush_soon(self) -> None:
        while self._events:
            await asyncio.sleep(FLUSH_S)
            events, self._events = self._events, []
            await asyncio.to_thread(self._send, events)

    def _send(self, events: list[dict[str, Any]]) -> None:
        from botocore.exceptions import BotoCoreError

        if self._cloud.closing:
            return
        try:
            self._put(events)
        except BotoCoreError as error:
            log.warning("%d lines of %s are lost: %s", len(events), self.name, error)

    def _put(self, events: list[dict[str, Any]]) -> None:
        logs = self._cloud.client("logs", self._region)
        if not self._made:
            for make, names in ((logs.create_log_group, {}), (logs.create_log_stream, {"logStreamName": self.name})):
                try:
                    make(logGroupName=self.group, **names)
                except logs.exceptions.ResourceAlreadyExistsException:
                    continue
            self._made = True
        logs.put_log_events(logGroupName=self.group, logStreamName=self.name, logEvents=events)
