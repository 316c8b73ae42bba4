"""The rehearsal's control plane in a process of its own, over a runtime that has states but no containers: for tests of deployments only.

Endpoints are Creating or Updating for as long as the test says, and fail where it says so.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stacks.aws.rehearsal.credentials import KEY_ID, REGION, SECRET
from stacks.aws.rehearsal.link import PREFIX, call
from stacks.aws.rehearsal.processes import end_all, start_module


@dataclass
class State:
    """One endpoint: what is in force, and what will be at `until`."""

    config: str = ""
    status: str = "Creating"
    reason: str = ""
    pending: str = ""
    until: float = 0.0


class States:
    """All endpoints. `seconds`: how long a change takes; `failures`: reason by the configuration that does not come up."""

    def __init__(self) -> None:
        self.reset()
        self._held: dict[str, State] = {}
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Changes take no time, and nothing fails."""
        self.seconds = 0.0
        self.failures: dict[str, str] = {}

    def deploy(self, order: dict[str, Any]) -> None:
        with self._lock:
            state = self._held.setdefault(order["name"], State())
            state.status = "Updating" if state.config else "Creating"
            state.pending, state.reason, state.until = order["config"], "", time.monotonic() + self.seconds

    def delete(self, name: str) -> None:
        with self._lock:
            self._held[name].status, self._held[name].until = "Deleting", time.monotonic() + self.seconds

    def all(self) -> dict[str, dict[str, str]]:
        with self._lock:
            for name, state in list(self._held.items()):
                self._advance(name, state)
            return {
                name: {"status": state.status, "reason": state.reason, "config": state.config or state.pending, "pending": state.pending}
                for name, state in self._held.items()
            }

    def _advance(self, name: str, state: State) -> None:
        if time.monotonic() < state.until:
            return
        if state.status == "Deleting":
            del self._held[name]
        elif state.pending:
            state.reason = self.failures.get(state.pending, "") or self.failures.get("*", "")
            if not state.reason:
                state.config = state.pending
            state.status = "InService" if state.config else "Failed"
            if state.config:
                state.pending = ""
            state.until = float("inf") if state.status == "Failed" else 0.0


@contextmanager
def control_plane(folder: Path) -> Iterator[tuple[dict[str, str], States]]:
    """The environment of a client, and the states. Ends with the body."""
    states = States()
    folder.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(states))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            runtime = f"http://127.0.0.1:{server.server_port}"
            start_module("stacks.aws.rehearsal.control_plane", listening, folder, {"HLS_REHEARSAL_RUNTIME": runtime})
        call(url, "ready", timeout=30.0)
        yield _environment(url), states
    finally:
        end_all(folder)
        server.shutdown()
        thread.join()
        server.server_close()


def _environment(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }


def _handler(states: States) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(states.all() if self.path.startswith(f"{PREFIX}/states/") else {"ready": True})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == f"{PREFIX}/endpoints":
                states.deploy(content)
            else:
                states.delete(content["endpoint"])
            self._answer({})

        def _answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    return Handler
