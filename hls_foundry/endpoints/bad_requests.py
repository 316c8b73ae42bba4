"""Requests that an endpoint must refuse, each with its documented error: part of every inference test."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile

from hls_foundry.endpoints.client import Invoker, limits_of
from hls_foundry.errors import ApiRefusal, EndpointError

NONSENSE_BYTES = 10_000_000
_LEAK = re.compile(r"Traceback|File \"|site-packages|/opt/ml|/home/|/usr/|/tmp/|\.py\b")


@dataclass(frozen=True)
class BadRequest:
    """A request and the statuses that may answer it."""

    name: str
    body: bytes
    expected: tuple[int, ...]
    content_type: str = "image/tiff"
    accept: str = "application/geo+json"
    attributes: str = ""
    api_may_refuse: bool = False  # an API between client and container may refuse it itself: nothing to hold against the container


@dataclass(frozen=True)
class Refusal:
    """What a bad request was answered with; `problem` is empty where that is as documented, `note` says where it did not get through."""

    name: str
    expected: tuple[int, ...]
    status: int
    error: str
    detail: str
    problem: str
    note: str = ""


def geotiff(bands: int = 6, height: int = 64, width: int = 64, dtype: str = "int16", *, empty: bool = False) -> bytes:
    """A small GeoTIFF; `empty`: only the header of one so large, no pixel behind it."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": dtype,
        "crs": "EPSG:32610",
        "transform": rasterio.transform.from_origin(500000, 4400000, 30, 30),
    }
    if empty:
        profile |= {"sparse_ok": True, "tiled": True, "blockxsize": 2048, "blockysize": 2048, "compress": "deflate", "bigtiff": "YES"}
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            if not empty:
                dataset.write(np.full((bands, height, width), 1000, dtype))
        content: bytes = memory.read()
    return content


def _npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def _json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def bad_requests(max_body: int | None = None) -> list[BadRequest]:
    """One of each kind that the contract names, none larger than `max_body` bytes.

    Unknown paths and methods, which the contract also names, are not among them: they cannot be asked for through SageMaker's API, and
    the tests of the serving application ask for them over HTTP.
    """
    nonsense = min(NONSENSE_BYTES, (max_body or NONSENSE_BYTES) - 64) // 2
    six = geotiff()
    image = base64.b64encode(six).decode()
    js, npy = "application/json", "application/x-npy"
    claims = b"\x93NUMPY\x01\x00" + b"\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 4000, 4000), }".ljust(117) + b"\n"
    return [
        BadRequest("empty body", b"", (400,), api_may_refuse=True),
        BadRequest("random bytes", bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8)), (422,)),
        BadRequest("truncated TIFF", six[: len(six) // 2], (422,)),
        BadRequest("TIFF of one band", geotiff(bands=1), (422,)),
        BadRequest("TIFF of 1 × 1 pixel", geotiff(height=1, width=1), (422,)),
        BadRequest("header of 40,000 × 40,000 pixels with little data", geotiff(height=40000, width=40000, empty=True), (413,)),
        BadRequest("a content type that is not served", b"hello", (415,), content_type="text/plain"),
        BadRequest("a reply format that is not served", six, (415,), accept="text/html"),
        BadRequest("unknown option", six, (422,), attributes="bandz=1"),
        BadRequest("threshold over 1", six, (422,), attributes="threshold=2"),
        BadRequest("bands that the file does not have", six, (422,), attributes="bands=1,2,3,4,5,99"),
        BadRequest("attributes of another syntax", six, (400,), attributes="threshold"),
        BadRequest("broken JSON", b'{"image": ', (400,), content_type=js),
        BadRequest("JSON without an image", _json(threshold=0.5), (422,), content_type=js),
        BadRequest("JSON with an unknown key", _json(image=image, treshold=0.5), (422,), content_type=js),
        BadRequest(f"{nonsense * 2 // 10**6} MB of JSON that is no request", b"[" + b"1," * nonsense + b"1]", (422,), content_type=js),
        BadRequest("an image that is not base64", _json(image="§§§"), (422,), content_type=js),
        BadRequest("a URI of a local file", _json(image="file:///etc/passwd"), (422,), content_type=js),
        BadRequest("a path of a local file", _json(image="/etc/passwd"), (422,), content_type=js),
        BadRequest("a URI of a private address", _json(image="http://169.254.169.254/latest/meta-data/"), (422,), content_type=js),
        BadRequest("a GDAL path", _json(image="/vsicurl/http://127.0.0.1/"), (422,), content_type=js),
        BadRequest("a bucket that is not allowed", _json(image="s3://not-an-allowed-bucket/scene.tif"), (422,), content_type=js),
        BadRequest("an array of five bands", _npy(np.zeros((5, 64, 64), np.float32)), (422,), content_type=npy),
        BadRequest("an array with pickled objects", _npy(np.array([{"a": 1}]), allow_pickle=True), (422,), content_type=npy),
        BadRequest("an array that claims more than it holds", claims, (422,), content_type=npy),
    ]


def send_bad_requests(client: Invoker, requests: Sequence[BadRequest] | None = None) -> list[Refusal]:
    """Send each and judge what comes back."""
    chosen = bad_requests(limits_of(client).max_body) if requests is None else requests
    return [_judge(client, request) for request in chosen]


def _judge(client: Invoker, request: BadRequest) -> Refusal:
    started = time.perf_counter()
    try:
        reply = client.invoke(request.body, content_type=request.content_type, accept=request.accept, attributes=request.attributes)
    except ApiRefusal as refusal:
        said = f"not judged: {refusal}"
        if request.api_may_refuse:
            return Refusal(request.name, request.expected, 0, "", "", "", note=said)
        return Refusal(request.name, request.expected, 0, "", "", said)
    except EndpointError as failure:
        return Refusal(request.name, request.expected, 0, "", "", f"no reply: {failure}")
    seconds = time.perf_counter() - started
    try:
        content = json.loads(reply.body)
        error, detail = str(content["error"]), str(content["detail"])
    except (ValueError, KeyError, TypeError):
        return Refusal(request.name, request.expected, reply.status, "", "", 'the reply\'s body is not {"error", "detail"}')
    problem = ""
    if reply.status not in request.expected:
        problem = f"answered {reply.status}, documented is {' or '.join(map(str, request.expected))}"
    elif _LEAK.search(detail):
        problem = f"the detail shows the server's inside: {detail[:120]}"
    elif seconds > limits_of(client).refusal_s:
        problem = f"took {seconds:.1f} s to be refused"
    return Refusal(request.name, request.expected, reply.status, error, detail, problem)
