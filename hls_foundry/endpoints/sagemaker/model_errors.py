"""What the container said, out of what AWS says it said: ModelError, a bare 413, and the failure objects of async endpoints.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
"""

from __future__ import annotations

import json
import re
from typing import Any

from hls_foundry.endpoints.client import Reply

STATUSES = {
    "bad_attributes": 400, "bad_json": 400, "empty_body": 400, "slow_body": 400,
    "not_found": 404, "unknown_model": 404, "method_not_allowed": 405, "already_loaded": 409,
    "body_too_large": 413, "image_too_large": 413,
    "unsupported_accept": 415, "unsupported_content_type": 415,
    "bad_array": 422, "bad_image": 422, "bad_model": 422, "bad_option": 422,
    "image_forbidden": 422, "image_refused": 422, "no_such_image": 422, "too_many_regions": 422,
    "internal": 500, "busy": 503, "not_ready": 503, "s3_unavailable": 503, "memory_short": 507,
}  # fmt: skip
"""The serving application's error words → its statuses: an async endpoint's failure object may hold the container's body alone."""

UNKNOWN_STATUS = 424  # "failed dependency", as AWS says of a failure that is the container's
_QUOTED = re.compile(r'Received (?:client|server) error \((\d+)\) from \S+ with message "(.*)"(?:\. See |\.?\s*$)', re.DOTALL)


def container_reply(status: int, text: str | bytes, seconds: float, media_type: str = "") -> Reply:
    """An error reply of the container as a client that speaks HTTP with it would have got it."""
    body = text.encode() if isinstance(text, str) else text
    media_type = media_type or ("application/json" if _json(body) is not None else "text/plain")
    return Reply(status, {"content-type": media_type}, body, seconds)


def too_large(limit: int, seconds: float) -> Reply:
    """The API's own bare 413 (text, no container behind it) in the words of the contract."""
    detail = f"SageMaker refused the body: the endpoint takes {limit / 2**20:.0f} MB, larger scenes go through S3"
    return container_reply(413, json.dumps({"error": "body_too_large", "detail": detail}), seconds)


def quoted(message: str) -> tuple[int, str] | None:
    """Status and body in a sentence of AWS such as `Received client error (422) from primary with message "…". See …`."""
    match = _QUOTED.search(message)
    return (int(match[1]), match[2]) if match else None


def failure_reply(content: bytes, seconds: float) -> Reply:
    """The reply in an async endpoint's failure object.

    It holds the container's body, AWS's sentence around it, or a ModelError as JSON: all three are known; what is none of them is a
    reply of status 424 with the object as its body.
    """
    document = _json(content)
    if isinstance(document, dict):
        if document.get("OriginalStatusCode"):
            return container_reply(int(document["OriginalStatusCode"]), str(document.get("OriginalMessage", "")), seconds)
        if str(document.get("error")) in STATUSES:
            return container_reply(STATUSES[str(document["error"])], content, seconds)
    text = content.decode(errors="replace")
    if isinstance(document, dict):
        text = str(document.get("Message") or document.get("message") or text)
    if found := quoted(text):
        return container_reply(*found, seconds)
    return container_reply(UNKNOWN_STATUS, content, seconds)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
