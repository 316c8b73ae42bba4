"""What surrounds every request: its id, its access log line, the last catch of errors, and `Connection: close` while draining."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hls_foundry.serving.logs import log, request_id

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_FAILURE = json.dumps({"error": "internal", "detail": "the server failed on this request; its log has the request id"}).encode()


class Front:
    """ASGI middleware. `draining()` says whether connections should end after their reply."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-amzn-sagemaker-inference-id") or headers.get("x-request-id") or ""
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        request_id.set(identity)
        notes: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = notes
        started = time.monotonic()
        status, sent = 0, 0

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", identity.encode())]
                if self._draining():
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("request_failed")
            notes["error"] = "internal"
            if not status:
                head = [(b"content-type", b"application/json"), (b"content-length", str(len(_FAILURE)).encode())]
                await answer({"type": "http.response.start", "status": 500, "headers": head})
                await answer({"type": "http.response.body", "body": _FAILURE})
        finally:
            self._access(scope, status, sent, time.monotonic() - started, notes)

    def _access(self, scope: Scope, status: int, sent: int, seconds: float, notes: dict[str, Any]) -> None:
        path = scope["path"][:120].encode("ascii", "backslashreplace").decode().replace(" ", "%20")
        noted = "".join(f" {key}={value}" for key, value in notes.items())
        write = log.debug if path == "/ping" else log.info
        write("request %s %s status=%d bytes_out=%d ms=%.0f%s", scope["method"], repr(path)[1:-1], status, sent, seconds * 1e3, noted)
