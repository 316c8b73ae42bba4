"""A tiny HTTP server that gives AWS's answers of the SageMaker runtime in the order told: for those that no endpoint here gives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`after_s`: seconds until it comes; `drop`: close the connection instead."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drop: bool = False


@dataclass(frozen=True)
class Asked:
    """A request as it arrived; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


def error(status: int, kind: str, message: str, **members: Any) -> Answer:
    """An error on the wire of rest-json, as ../shared/facts/aws.md has it."""
    body = json.dumps({"Message": message, **members}).encode()
    return Answer(status, body, {"x-amzn-ErrorType": kind, "Content-Type": "application/json"})


def model_error(status: int, text: str, **members: Any) -> Answer:
    side = "client" if status < 500 else "server"
    message = f'Received {side} error ({status}) from primary with message "{text}". See https://eu-central-1.console for more information.'
    return error(424, "ModelError", message, OriginalStatusCode=status, OriginalMessage=text, **members)


class Answering:
    """The server; a context manager. `answers` are given one a request, the last for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[Asked] = []
        self._answers = list(answers) or [Answer()]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one segment a reply
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer._reply(self, Asked(self.path, {key.lower(): value for key, value in self.headers.items()}, body))

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, *answers: Answer) -> None:
        """From now on these, and nothing asked yet."""
        self._answers = list(answers)
        self.asked.clear()

    def _reply(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        self.asked.append(asked)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        time.sleep(answer.after_s)
        if answer.drop:
            handler.close_connection = True
            return
        try:
            handler.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(answer.body)
            handler.wfile.flush()
        except BrokenPipeError:
            handler.close_connection = True  # the client had no more patience, which is what is tested

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
