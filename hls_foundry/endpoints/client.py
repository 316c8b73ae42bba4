"""A client of one endpoint over HTTP: what tests, run.py and the local deployment speak to the serving application."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import httpx

from hls_foundry.errors import EndpointError

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
MAX_ATTRIBUTES = 1024  # ASCII characters of them that SageMaker hands through


@dataclass(frozen=True)
class Reply:
    """What came back. `headers` have lower-case names; `seconds` is from the first byte sent to the last received."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip()

    def json(self) -> Any:
        """The body as JSON. Raises EndpointError where it is none."""
        import json

        try:
            return json.loads(self.body)
        except ValueError:
            raise EndpointError(f"the endpoint answered {self.status} with a body that is not JSON ({self.media_type})") from None


@dataclass(frozen=True)
class Limits:
    """What lies between a client and the container: the bytes that one request carries, and how long a refusal may take to arrive."""

    max_body: int | None = None
    refusal_s: float = 5.0


class Invoker(Protocol):
    """Anything that hands a request to an endpoint: over HTTP here, through a cloud's API elsewhere.

    One that does not reach the container directly also says so: `limits` (see `limits_of`).
    """

    def invoke(self, body: bytes, *, content_type: str, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        """One invocation. `attributes`: options of binary bodies, `key=value;key=value`."""
        ...


def limits_of(client: Invoker) -> Limits:
    """The client's own `limits`; those of plain HTTP where it names none."""
    limits = getattr(client, "limits", None)
    return limits if isinstance(limits, Limits) else Limits()


def format_attributes(options: Mapping[str, Any]) -> str:
    """Options as `key=value;key=value`; None and "auto" are left out, sequences joined by commas."""
    pairs = []
    for key, value in options.items():
        if value is None or value == "auto":
            continue
        pairs.append(f"{key}={','.join(str(part) for part in value) if isinstance(value, (list, tuple)) else value}")
    return ";".join(pairs)


class EndpointClient:
    """The serving application at `url` (http://HOST:PORT). A context manager; keeps its connections."""

    def __init__(self, url: str, *, timeout: float = 300.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=httpx.Timeout(timeout, connect=5.0), trust_env=False)

    def ping(self) -> bool:
        """Whether a model is loaded and healthy; False also where nothing listens."""
        try:
            return self._http.get("/ping", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def invoke(self, body: bytes, *, content_type: str = "image/tiff", accept: str = "application/geo+json", attributes: str = "") -> Reply:
        """POST /invocations. Raises EndpointError where no reply comes; error replies are returned."""
        return self._post("/invocations", body, content_type, accept, attributes)

    def invoke_model(
        self, name: str, body: bytes, *, content_type: str = "image/tiff", accept: str = "application/geo+json", attributes: str = ""
    ) -> Reply:
        """POST /models/NAME/invoke of a multi-model server."""
        return self._post(f"/models/{name}/invoke", body, content_type, accept, attributes)

    def _post(self, path: str, body: bytes, content_type: str, accept: str, attributes: str) -> Reply:
        headers = {"Accept": accept}
        if content_type:
            headers["Content-Type"] = content_type
        if attributes:
            headers[ATTRIBUTES] = attributes
        return self.request("POST", path, content=body, headers=headers)

    def request(self, method: str, path: str, **arguments: Any) -> Reply:
        """Any other request, arguments as httpx takes them. Raises EndpointError where no reply comes."""
        started = time.perf_counter()
        try:
            reply = self._http.request(method, path, **arguments)
        except httpx.TimeoutException:
            raise EndpointError(f"{self.url}{path} did not answer in time: see the endpoint's log (run.py logs)") from None
        except httpx.HTTPError as error:
            raise EndpointError(f"{self.url}{path} cannot be reached ({error}): is the endpoint running? (run.py endpoints)") from None
        return Reply(reply.status_code, dict(reply.headers), reply.content, time.perf_counter() - started)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
