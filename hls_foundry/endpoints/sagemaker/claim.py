"""One change of an endpoint at a time, over all machines: a claim in S3, made and kept by conditional writes.

SageMaker's own refusal ("Cannot update in-progress endpoint") does not cover the time between its changes: while one deployment tests its
new configuration, another could put a third one behind it. So whoever changes an endpoint holds the object `claim.json` in its folder in
S3, created only where there is none (If-None-Match), rewritten every BEAT_S seconds only as long as it is its own (If-Match). A claim is
taken over when its process has ended, which can be told on the same machine, or after LEASE_S seconds without a beat, on S3's clock.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from hls_foundry.endpoints.aws import aws_errors, error_code
from hls_foundry.endpoints.process import ServerProcess, born_at
from hls_foundry.endpoints.sagemaker.resources import Place
from hls_foundry.endpoints.settings import TAG
from hls_foundry.errors import EndpointError

BEAT_S, LEASE_S = 15.0, 60.0
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
GONE = ("NoSuchKey", "404", "NotFound")


@dataclass
class Claim:
    """A claim that is held. `check` raises once it is not."""

    s3: Any
    endpoint: str
    place: Place
    content: dict[str, Any]
    etag: str
    beat_at: float
    lost: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises EndpointError where another run has taken over: nothing may be changed any more."""
        if self.lost or time.monotonic() - self.beat_at > LEASE_S:
            raise EndpointError(f"endpoint '{self.endpoint}': another run has taken over while this one was out of reach")

    def keep(self) -> None:
        """Rewrite it until it is released or lost: the body of a thread."""
        from botocore.exceptions import BotoCoreError, ClientError

        while not self._ended.wait(BEAT_S):
            started = time.monotonic()
            self.content["beat"] += 1
            try:
                self.etag = _put(self.s3, self.place, self.content, IfMatch=self.etag)
                self.beat_at = started
            except ClientError as error:
                if error_code(error) in (*TAKEN, *GONE):
                    self.lost = True
                    return
            except BotoCoreError:
                continue  # S3 is out of reach: the lease runs, and `check` counts it

    def release(self, keeper: threading.Thread) -> None:
        """Remove it, where it is still ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        self._ended.set()
        keeper.join()
        try:
            self.s3.delete_object(Bucket=self.place.bucket, Key=_key(self.place), IfMatch=self.etag)
        except (ClientError, BotoCoreError):
            return  # another's by now, or out of reach: then it ends by itself


@contextmanager
def claimed(s3: Any, endpoint: str, place: Place) -> Iterator[Claim]:
    """Hold the claim on `endpoint` in its folder `place`.

    Raises EndpointError (one line): another run holds it, no such bucket, no access.
    """
    with aws_errors(f"s3://{place.bucket}"):
        claim = _acquire(s3, endpoint, place)
    keeper = threading.Thread(target=claim.keep, name=f"claim {endpoint}", daemon=True)
    keeper.start()
    try:
        yield claim
    finally:
        claim.release(keeper)


def _acquire(s3: Any, endpoint: str, place: Place) -> Claim:
    from botocore.exceptions import ClientError

    content = {"endpoint": endpoint, "owner": uuid.uuid4().hex, "since": datetime.now(UTC).isoformat(timespec="seconds"), **_whereabouts()}
    content["beat"] = 0
    condition = {"IfNoneMatch": "*"}
    for _ in range(3):
        started = time.monotonic()
        try:
            return Claim(s3, endpoint, place, content, _put(s3, place, content, **condition), started)
        except ClientError as error:
            if error_code(error) not in (*TAKEN, *GONE):
                raise
        try:
            held = s3.get_object(Bucket=place.bucket, Key=_key(place))
        except ClientError as error:
            if error_code(error) not in GONE:
                raise
            condition = {"IfNoneMatch": "*"}  # released between the two calls
            continue
        condition = {"IfMatch": held["ETag"]}
        _refuse_while_alive(endpoint, held)
    raise EndpointError(f"endpoint '{endpoint}' is being changed by several runs at once: run this one again when the other has ended")


def _refuse_while_alive(endpoint: str, held: dict[str, Any]) -> None:
    """Raises EndpointError unless the holder has ended."""
    try:
        holder = json.loads(held["Body"].read())
        host, pid, born, since = str(holder["host"]), int(holder["pid"]), str(holder["born"]), str(holder["since"])
    except (ValueError, KeyError, TypeError):
        host, pid, born, since = "another machine", 0, "", "an unknown time"
    ours = _whereabouts()
    ended = bool(host == ours["host"] and born and ours["born"]) and not ServerProcess(pid, born, "").alive()
    now = parsedate_to_datetime(held["ResponseMetadata"]["HTTPHeaders"]["date"])
    left = LEASE_S - (now - held["LastModified"]).total_seconds()
    if not ended and left > 0:
        raise EndpointError(
            f"endpoint '{endpoint}' is being changed by process {pid} on {host.partition('/')[0]}, since {since}: "
            f"wait until it has ended (where it was killed: {left:.0f} s), then run again"
        )


def _whereabouts() -> dict[str, Any]:
    """This process, as one on the same machine can look it up: the host's name with the name space that its pid is of."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return {"host": f"{socket.gethostname()}/{space}", "pid": os.getpid(), "born": born_at(os.getpid())[0]}


def _put(s3: Any, place: Place, content: dict[str, Any], **condition: str) -> str:
    """The object's new ETag."""
    body = json.dumps(content).encode()
    tag = f"{TAG}={content['endpoint']}"
    reply = s3.put_object(Bucket=place.bucket, Key=_key(place), Body=body, ContentType="application/json", Tagging=tag, **condition)
    return str(reply["ETag"])


def _key(place: Place) -> str:
    return f"{place.prefix}claim.json"
