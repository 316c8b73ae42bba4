"""The dashboard's process: ZenML's server behind a key, with a page for each model that the open-source dashboard lacks.

    python -m cli.dashboard_server FD        FD: a listening socket; the key is in HLS_DASHBOARD_KEY

ZenML's own local server asks for no password and takes requests from any web page. Here a browser needs the key that
`run.py dashboard` prints, once: on a login node nobody else can read or change the user's lineage.
"""

from __future__ import annotations

import os
import secrets
import sys
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.dashboard_process import KEY

HEALTH = "/health"
MODELS = "/hls/models"
REFUSED = "This page needs its key: open the address that `python run.py dashboard` prints."
COOKIE_S = 30 * 24 * 3600
OWN_PAGES = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "frame-src 'self' data: blob:; base-uri 'self'; form-action 'self'"
)
"""Content security policy: ZenML's pages fetch logos and avatars from other hosts, ours nothing. This keeps browsers from asking them."""


class Guard:
    """Lets requests through that bring the key: as a cookie, or once as ?key=, which sets the cookie. /health needs none."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        self.app, self.key, self.cookie = app, key, f"hls_dashboard_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") == HEALTH:
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        given = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if scope["type"] == "http" and self._is_key(given.pop("key", [""])[0]):
            await self._admit(scope["path"], given)(scope, receive, send)
        elif self._is_key(_cookie(connection, self.cookie)) and _same_origin(connection):
            await self.app(scope, receive, _with_policy(send))
        else:
            await PlainTextResponse(REFUSED, status_code=403)(scope, receive, send)

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.key.encode())

    def _admit(self, path: str, query: dict[str, list[str]]) -> Response:
        """To the same page without the key in its address, which browsers keep in their history. Never to another host."""
        target = "/" + path.lstrip("/\\") + (f"?{urlencode(query, doseq=True)}" if query else "")
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(self.cookie, self.key, max_age=COOKIE_S, httponly=True, samesite="lax")
        return answer


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["content-security-policy"] = OWN_PAGES
        await send(message)

    return sending


def _cookie(connection: HTTPConnection, name: str) -> str:
    cookies = SimpleCookie()
    cookies.load(connection.headers.get("cookie", ""))
    return cookies[name].value if name in cookies else ""


def _same_origin(connection: HTTPConnection) -> bool:
    """False for what a page of another origin sends: to a browser, all ports of 127.0.0.1 are one site and share their cookies."""
    origin = connection.headers.get("origin")
    return origin is None or origin.partition("://")[2] == connection.headers.get("host")


class ModelPages:
    """`/hls/models` and `/hls/models/TASK`; everything else is ZenML's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or not (path == MODELS or path.startswith(f"{MODELS}/")):
            await self.app(scope, receive, send)
            return
        from cli.model_page import draw

        page = await run_in_threadpool(draw, path.removeprefix(MODELS).strip("/"))
        answer = HTMLResponse(page) if page else PlainTextResponse("There is no model of that name.", status_code=404)
        await answer(scope, receive, send)


def serve(descriptor: int, key: str) -> None:
    """Answer on the listening socket `descriptor` until SIGTERM."""
    import socket

    import uvicorn

    with socket.socket(fileno=os.dup(descriptor)) as listening:
        port = listening.getsockname()[1]
    from zenml.zen_server.zen_server_api import app

    uvicorn.run(Guard(ModelPages(app), key, port), fd=descriptor, lifespan="on", access_log=False, server_header=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]), os.environ.pop(KEY))
