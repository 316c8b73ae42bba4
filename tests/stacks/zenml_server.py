"""A real ZenML server on this machine, for the time of a test, with a service account for those who submit to it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

APP = "zenml.zen_server.zen_server_api:app"
START_S = 120


@contextmanager
def zenml_server(folder: Path) -> Iterator[dict[str, str]]:
    """What a client's environment needs to use the server, whose database and log lie in `folder`."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZENML_")}
    own = {
        "ZENML_CONFIG_PATH": str(folder),
        "ZENML_SERVER": "true",
        "ZENML_SERVER_DEPLOYMENT_TYPE": "other",
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    command = [sys.executable, "-m", "uvicorn", APP, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env={**kept, **own}, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(url, process, folder / "server.log")
        yield {"ZENML_STORE_URL": url, "ZENML_STORE_API_KEY": service_key(url)}
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)  # it does not listen yet
    raise RuntimeError(f"ZenML's server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def service_key(url: str) -> str:
    """The API key of a new service account. The administrator who makes it is made here as well, as on a server's first day."""
    password = f"A1-{secrets.token_urlsafe(16)}"
    with httpx.Client(base_url=f"{url}/api/v1", timeout=60) as client:

        def told(method: str, path: str, **request: Any) -> Any:
            return client.request(method, path, **request).raise_for_status().json()

        told("PUT", "/activate", json={"admin_username": "ada", "admin_password": password})
        token = told("POST", "/login", data={"username": "ada", "password": password})["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        account = told("POST", "/service_accounts", json={"name": "runner", "active": True})["id"]
        return str(told("POST", f"/service_accounts/{account}/api_keys", json={"name": "tests"})["body"]["key"])
