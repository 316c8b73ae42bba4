"""Plain JSON over HTTP between run.py, the control plane and the runtime of one rehearsal, all on this machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from hls_foundry.errors import EndpointError

PREFIX = "/_rehearsal"
"""Paths under it belong to the rehearsal; AWS has none of that name."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url: str, path: str, content: Any = None, *, timeout: float = 5.0) -> Any:
    """GET `url`/_rehearsal/`path`, or POST `content` to it; the reply's JSON. Raises EndpointError (one line)."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{url}{PREFIX}/{path}", body, {"Content-Type": "application/json"})
    try:
        with _DIRECT.open(request, timeout=timeout) as reply:
            return json.loads(reply.read() or b"null")
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:300]
        raise EndpointError(f"the rehearsal refuses {path}: {said or error.reason}") from None
    except (OSError, ValueError) as error:
        raise EndpointError(f"the rehearsal at {url} does not answer ({error}): python run.py rehearsal down, then up") from None
