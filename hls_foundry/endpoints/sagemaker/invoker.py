"""Calls one SageMaker endpoint of any kind through AWS's API, with the replies that a client of the container itself would get.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpointAsync.html
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hls_foundry.endpoints.aws import Aws, aws_errors
from hls_foundry.endpoints.client import ATTRIBUTES, MAX_ATTRIBUTES, Limits, Reply
from hls_foundry.endpoints.inbox import S3Inbox, remove
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from hls_foundry.endpoints.sagemaker.model_errors import container_reply, failure_reply, quoted, too_large
from hls_foundry.endpoints.sagemaker.patience import UNCOUNTED, Again, Patience, patiently
from hls_foundry.endpoints.sagemaker.resources import Place
from hls_foundry.endpoints.settings import Kind
from hls_foundry.errors import ApiRefusal, EndpointError

MB = 2**20
MAX_BODY: dict[Kind, int] = {"realtime": 6 * MB, "multi_model": 6 * MB, "serverless": 4 * MB, "async": 1024 * MB}
"""Bytes that one invocation carries; async by S3 object (the service's quotas)."""

READ_SECONDS = 75.0  # the service itself gives up after 60
SLOW_ATTEMPTS = 2  # what took a minute once takes it again
ASYNC_REFUSAL_S = 60.0  # a queue lies between
_THROTTLED = ("ModelNotReadyException", "Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "429")
_ABSENT = ("NoSuchKey", "404", "NotFound")
_FORBIDDEN = ("AccessDenied", "403", "Forbidden")
_TIFF, _JSON = "image/tiff", "application/json"


@dataclass(frozen=True)
class Target:
    """Which endpoint, and of a multi-model one which model (its archive's key under the model prefix)."""

    name: str
    kind: Kind
    target_model: str | None = None


class SageMakerInvoker:
    """One endpoint as an Invoker.

    `runtime`, `s3`: boto3 clients. `inbox`: where bodies go that the API does not carry (needed by async endpoints for every request; for
    the others a bucket that the container may read). `wait_s`: how long an async result is waited for.
    """

    def __init__(
        self,
        target: Target,
        runtime: Any,
        s3: Any = None,
        *,
        inbox: S3Inbox | None = None,
        patience: Patience | None = None,
        wait_s: float = 900.0,
    ) -> None:
        if target.kind == "multi_model" and not target.target_model:
            raise EndpointError(f"endpoint '{target.name}' holds several models: say which (its task)")
        if target.kind == "async" and inbox is None:
            raise EndpointError(f"endpoint '{target.name}' is asynchronous and takes its input from S3: name a bucket for it")
        self.target, self.inbox = target, inbox
        self._runtime, self._s3 = runtime, s3
        self._patience = patience or Patience()
        self._wait_s = wait_s

    @property
    def limits(self) -> Limits:
        """What lies between a client and the container."""
        slow = ASYNC_REFUSAL_S if self.target.kind == "async" else Limits.refusal_s
        return Limits(max_body=MAX_BODY[self.target.kind], refusal_s=slow)

    def invoke(self, body: bytes, *, content_type: str, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        """One invocation; the container's error replies are returned as over HTTP.

        A body over the kind's limit goes through S3 where the inbox is known and the body holds a GeoTIFF. Throttling, time-outs and
        failures of the service are tried again, bounded. Raises EndpointError (one line): no such endpoint, no reply, body too large,
        `attributes` over 1024 characters or not ASCII; ApiRefusal where AWS finds fault with the request itself.
        """
        return self._invoke(body, content_type, accept, attributes)

    def invoke_file(self, scene: Path, *, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        """As `invoke` with the GeoTIFF in the file `scene`, which is not read into memory where it goes through S3."""
        fits = self.target.kind != "async" and scene.stat().st_size <= MAX_BODY[self.target.kind]
        return self._invoke(scene.read_bytes() if fits else scene, _TIFF, accept, attributes)

    # -- how a body travels

    def _invoke(self, body: bytes | Path, content_type: str, accept: str, attributes: str) -> Reply:
        if len(attributes) > MAX_ATTRIBUTES or not attributes.isascii():
            raise EndpointError(f"SageMaker hands through at most {MAX_ATTRIBUTES} ASCII characters of options: send fewer")
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        limit = MAX_BODY[self.target.kind]
        if self.target.kind == "async":
            if size > limit:
                raise self._too_large(size, "async takes no more")
            assert self.inbox is not None
            with self.inbox.holding(body, suffix=_suffix(content_type)) as uri:
                return patiently(lambda: self._queued(uri, _headers(content_type, accept, attributes)), self._patience)
        if isinstance(body, bytes) and size <= limit:
            return self._direct(body, _headers(content_type, accept, attributes))
        with self._by_reference(body, size, content_type, attributes) as reference:
            return self._direct(reference, _headers(_JSON, accept, ""))

    @contextmanager
    def _by_reference(self, body: bytes | Path, size: int, content_type: str, attributes: str) -> Iterator[bytes]:
        """A JSON body that names the GeoTIFF of `body` in the inbox, with the options that were sent along."""
        if self.inbox is None:
            raise self._too_large(size, "publish to a bucket that the container may read (s3_allow), use kind: async, or send less")
        found: tuple[bytes | Path, dict[str, Any]] | None = None
        if content_type == _TIFF:
            found = body, dict(part.strip().split("=", 1) for part in attributes.split(";") if "=" in part)
        elif content_type == _JSON and isinstance(body, bytes):
            found = _image_of(body)
        if found is None:
            raise self._too_large(size, "only GeoTIFFs go through S3: send one, or send less")
        with self.inbox.holding(found[0], suffix=".tif") as uri:
            yield json.dumps({"image": uri, **found[1]}).encode()

    def _too_large(self, size: int, what_to_do: str) -> EndpointError:
        kind, limit = self.target.kind, MAX_BODY[self.target.kind]
        taken = f"more than the {limit // MB} MB that endpoint '{self.target.name}' ({kind}) takes"
        return EndpointError(f"the body of {size / MB:.1f} MB is {taken}: {what_to_do}")

    # -- one request and its answer

    def _direct(self, body: bytes, headers: dict[str, str]) -> Reply:
        if self.target.kind == "multi_model" and self.target.target_model:
            headers = {**headers, "TargetModel": self.target.target_model}

        from botocore.exceptions import BotoCoreError, ClientError

        def send() -> Reply | Again[Reply]:
            started = self._patience.clock()
            try:
                answer = self._runtime.invoke_endpoint(EndpointName=self.target.name, Body=body, **headers)
                content: bytes = answer["Body"].read()
            except (BotoCoreError, ClientError) as error:
                return self._judge(error, self._patience.clock() - started)
            named = {
                "content-type": answer.get("ContentType", ""),
                ATTRIBUTES.lower(): answer.get("CustomAttributes", ""),
                "x-amzn-invoked-production-variant": answer.get("InvokedProductionVariant", ""),
            }
            return Reply(200, {key: value for key, value in named.items() if value}, content, self._patience.clock() - started)

        with aws_errors(f"invoking endpoint '{self.target.name}'"):
            return patiently(send, self._patience)

    def _queued(self, uri: str, headers: dict[str, str]) -> Reply | Again[Reply]:
        """Hand the object `uri` to an async endpoint and wait for its answer."""
        from botocore.exceptions import BotoCoreError, ClientError

        started = self._patience.clock()
        most = round(min(3600.0, max(60.0, self._wait_s)))

        def submit() -> dict[str, Any] | Again[dict[str, Any]]:
            try:
                accepted: dict[str, Any] = self._runtime.invoke_endpoint_async(
                    EndpointName=self.target.name, InputLocation=uri, RequestTTLSeconds=most, InvocationTimeoutSeconds=most, **headers
                )
            except (BotoCoreError, ClientError) as error:
                answer = self._judge(error, self._patience.clock() - started)
                if isinstance(answer, Reply):
                    raise EndpointError(f"endpoint '{self.target.name}' did not take the request ({answer.status})") from None
                return Again(answer.reason, attempts=answer.attempts)
            return accepted

        with aws_errors(f"invoking endpoint '{self.target.name}'"):
            accepted = patiently(submit, self._patience)
            reply = self._result(accepted["OutputLocation"], accepted.get("FailureLocation"), headers.get("Accept", ""), started)
        return Again("", last=reply, attempts=3) if reply.status == 503 else reply

    def _result(self, output: str, failure: str | None, accept: str, started: float) -> Reply:
        """Poll S3 for the result or the failure, gently; the object that came is removed."""
        patience, pause, forbidden = self._patience, 0.1, False
        while True:
            for location in filter(None, [output, failure]):
                content, media_type, refused = _fetched(self._s3, location)
                forbidden |= refused
                if content is not None:
                    seconds = patience.clock() - started
                    remove(self._s3, location)
                    known = media_type if media_type not in ("", "binary/octet-stream", "application/octet-stream") else accept
                    return Reply(200, {"content-type": known}, content, seconds) if location == output else failure_reply(content, seconds)
            if patience.clock() - started + pause > self._wait_s:
                place = output.rpartition("/")[0]
                if forbidden:
                    raise EndpointError(f"the result of endpoint '{self.target.name}' cannot be read: s3:GetObject on {place} is refused")
                raise EndpointError(f"endpoint '{self.target.name}' put no result under {place} in {self._wait_s:.0f} s: see its log")
            patience.sleep(pause)
            pause = min(5.0, pause * 1.4)

    def _judge(self, error: Exception, seconds: float) -> Reply | Again[Reply]:
        """What an exception of botocore means: a reply, "come back", or (raised) one line, or itself for `aws_errors` to explain."""
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, ReadTimeoutError

        name = self.target.name
        if isinstance(error, ReadTimeoutError):
            return Again(self._slow(), attempts=SLOW_ATTEMPTS)
        if isinstance(error, (ConnectionError, HTTPClientError)):  # no connection, or one that broke
            return Again(f"endpoint '{name}' cannot be reached ({type(error).__name__}): check the network and the region")
        if not isinstance(error, ClientError):
            raise error
        problem = error.response.get("Error", {})
        code, message = str(problem.get("Code", "")), " ".join(str(problem.get("Message", "")).split())
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "ModelError":
            return self._said_by_container(error.response, message, seconds)
        if status == 413 or code == "413":
            return too_large(MAX_BODY[self.target.kind], seconds)
        if code in _THROTTLED or status == 429:
            warming = code == "ModelNotReadyException"
            reason = f"endpoint '{name}' is still loading its model" if warming else f"AWS throttles calls of endpoint '{name}'"
            return Again(f"{reason}: try again later", attempts=UNCOUNTED if warming else None)
        if status >= 500:
            return Again(f"endpoint '{name}' failed in AWS ({status} {code}): {message[:200]}")
        if code == "ValidationError" and "not found" in message and name in message:
            raise EndpointError(f"there is no endpoint '{name}' in this account and region: run.py endpoints lists those that there are")
        if code in ("ValidationError", "ValidationException"):
            raise ApiRefusal(f"AWS refuses the request to endpoint '{name}': {message[:300]}")
        raise error

    def _said_by_container(self, response: dict[str, Any], message: str, seconds: float) -> Reply | Again[Reply]:
        status, text = int(response.get("OriginalStatusCode") or 0), str(response.get("OriginalMessage") or "")
        if not status and (found := quoted(message)):
            status, text = found
        if not status:  # no container answered: it timed out, or its process died
            if "timed out" in message or "timed out" in text:
                return Again(self._slow(), attempts=SLOW_ATTEMPTS)
            return Again(f"the container of endpoint '{self.target.name}' did not answer ({message[:200]}): see its log")
        reply = container_reply(status, text, seconds)
        return Again(f"endpoint '{self.target.name}' is busy", last=reply) if status == 503 else reply

    def _slow(self) -> str:
        return f"endpoint '{self.target.name}' did not answer within its minute: send a smaller scene, or use kind: async"


def inbox_of(endpoint: SageMakerEndpoint, aws: Aws, *, kms_key: str | None = None) -> S3Inbox:
    """Where requests of `endpoint` may lie: inbox/ in its home. Its container reads it where s3_allow names the bucket."""
    home = Place.parse(endpoint.home)
    return S3Inbox(aws.client("s3"), home.bucket, f"{home.prefix}inbox", kms_key)


def invoker_for(
    endpoint: SageMakerEndpoint, aws: Aws, *, task: str | None = None, inbox: S3Inbox | None = None, wait_s: float = 900.0
) -> SageMakerInvoker:
    """An invoker of `endpoint`; `task` chooses among the models of a multi_model one. `inbox`: none takes that in the endpoint's home.

    Raises EndpointError: a multi_model endpoint without `task`, no region.
    """
    model = endpoint.target_model(task) if task else None
    target = Target(endpoint.name, _kind(endpoint.kind), model)
    runtime = aws.client("sagemaker-runtime", read_s=READ_SECONDS, attempts=1)  # the invoker has patience of its own
    return SageMakerInvoker(target, runtime, aws.client("s3"), inbox=inbox or inbox_of(endpoint, aws), wait_s=wait_s)


def _kind(text: str) -> Kind:
    for known in MAX_BODY:
        if known == text:
            return known
    raise EndpointError(f"'{text}' is no kind of SageMaker endpoint: known are {', '.join(MAX_BODY)}")


def _headers(content_type: str, accept: str, attributes: str) -> dict[str, str]:
    given = {"ContentType": content_type, "Accept": accept, "CustomAttributes": attributes}
    return {key: value for key, value in given.items() if value}


def _suffix(content_type: str) -> str:
    return {_TIFF: ".tif", _JSON: ".json", "application/x-npy": ".npy"}.get(content_type, "")


def _image_of(body: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """The GeoTIFF and the options of a JSON request that holds one in base64; None for any other body."""
    try:
        document = json.loads(body)
        return base64.b64decode(document.pop("image"), validate=True), document
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _fetched(s3: Any, uri: str) -> tuple[bytes | None, str, bool]:
    """Content and media type of an object; None where it is not there (yet), and whether S3 would not say."""
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        found = s3.get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), str(found.get("ContentType", "")), False
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            return None, "", False
        if code in _FORBIDDEN:  # so S3 answers for absent objects where s3:ListBucket is missing
            return None, "", True
        raise
