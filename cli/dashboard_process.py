"""ZenML's server as a process of this machine: started so that it outlives run.py, reused while it answers, stopped on request.

    HOME/dashboard/ID/dashboard.json   which process answers where, and with which key (readable by its owner only)
    HOME/dashboard/ID/server.log
    HOME/dashboard/ID/zenml/           the server's own configuration: the user's is not touched

ID is made from the address of ZenML's store: a server shows the runs of one store, and run.py goes on writing to that directly.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

import psutil

from cli.interrupts import deferred_signals
from hls_foundry.errors import ConfigError, FoundryError
from hls_foundry.home import REPOSITORY, foundry_home

HOST = "127.0.0.1"
KEY = "HLS_DASHBOARD_KEY"
SERVER_MODULES = ("fastapi", "uvicorn", "jwt", "multipart", "secure")
READY_S, BUSY_S, STOP_S = 120.0, 30.0, 15.0


@dataclass(frozen=True)
class Dashboard:
    """A server on file. `created`: when its process started, which tells it from a later one of the same pid."""

    pid: int
    created: float
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def process(self) -> psutil.Process | None:
        """Its process; None where that has ended."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if same else None

    def answers(self) -> bool:
        try:
            with build_opener(ProxyHandler({})).open(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (OSError, HTTPException):
            return False


class DashboardServer:
    """The server of one ZenML store. `store`: the store's address, sqlite:///PATH."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.folder = foundry_home() / "dashboard" / hashlib.sha256(store.encode()).hexdigest()[:12]

    def running(self) -> Dashboard | None:
        """The one on file whose process lives."""
        known = self._read()
        return known if known and known.process() else None

    def start(self, port: int | None, stores: str) -> Dashboard:
        """A server that answers: the running one, or a new one on `port` (none: its former one, or a free one).

        `stores`: ZenML's folder of local stores, where artifacts lie. Raises FoundryError (one line): the port is taken, ZenML's server
        is not installed, or it ends instead of answering.
        """
        _check_installed()
        with self._locked():
            known = self.running()
            if known and port in (None, known.port) and _answers_within(known, BUSY_S):
                return known
            self._stop(known)
            former = self._read()
            with _listen(port, former.port if former else None) as listening, deferred_signals():  # until it is on file
                dashboard = self._launch(listening, stores, former.key if former else secrets.token_urlsafe(16))
            self._await(dashboard)
            return dashboard

    def stop(self) -> bool:
        """Stop it; False where none runs."""
        if not self.folder.is_dir():
            return False
        with self._locked():
            known = self.running()
            self._stop(known)
            return known is not None

    def _launch(self, listening: socket.socket, stores: str, key: str) -> Dashboard:
        descriptor = listening.fileno()
        log = os.open(self.folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cli.dashboard_server", str(descriptor)],
                cwd=self.folder,
                env=self._environment(stores, key, listening.getsockname()[1]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        finally:
            os.close(log)
        made = Dashboard(process.pid, psutil.Process(process.pid).create_time(), listening.getsockname()[1], key)
        process.returncode = 0  # so that Python does not warn of a child that is meant to outlive us
        file = os.open(self.folder / "dashboard.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as record:
            json.dump(asdict(made), record)
        return made

    def _environment(self, stores: str, key: str, port: int) -> dict[str, str]:
        """As ZenML's own `login --local` sets it, but for the store, which is named, and for what would call out or let others in."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_STORE_", "ZENML_ACTIVE_"))}
        return inherited | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "ZENML_SERVER": "true",
            "ZENML_CONFIG_PATH": str(self.folder / "zenml"),
            "ZENML_LOCAL_STORES_PATH": stores,
            "ZENML_STORE_TYPE": "sql",
            "ZENML_STORE_URL": self.store,
            "ZENML_DISABLE_DATABASE_MIGRATION": "true",
            "ZENML_SERVER_DEPLOYMENT_TYPE": "local",
            "ZENML_SERVER_AUTH_SCHEME": "NO_AUTH",  # the key in front of it does that
            "ZENML_SERVER_AUTO_ACTIVATE": "true",
            "ZENML_SERVER_ALLOW_LOCAL_FILE_ACCESS": "true",
            "ZENML_SERVER_CORS_ALLOW_ORIGINS": f"http://{HOST}:{port}",
            "ZENML_SERVER_SECURE_HEADERS_CSP": "disabled",  # the guard sets it
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_VERBOSITY": "WARNING",
            "ZENML_LOGGING_COLORS_DISABLED": "true",
            KEY: key,
        }

    def _await(self, dashboard: Dashboard) -> None:
        if _answers_within(dashboard, READY_S):
            return
        log = self.folder / "server.log"
        if dashboard.process() is None:
            raise FoundryError(f"the dashboard's server ended: {self._last_words()} (log: {log})")
        self._stop(dashboard)
        raise FoundryError(f"the dashboard does not answer after {READY_S:g} s: see {log}")

    def _stop(self, dashboard: Dashboard | None) -> None:
        process = dashboard.process() if dashboard else None
        if process is None:
            return
        for end in (process.terminate, process.kill):
            try:
                end()
                process.wait(STOP_S)
                return
            except psutil.NoSuchProcess:
                return
            except psutil.AccessDenied:
                raise ConfigError(f"the dashboard's process {process.pid} belongs to another user: stop it as that user") from None
            except psutil.TimeoutExpired:
                continue
        raise FoundryError(f"the dashboard's process {process.pid} does not end, not even killed: see why (ps -p {process.pid})")

    def _read(self) -> Dashboard | None:
        try:
            return Dashboard(**json.loads((self.folder / "dashboard.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # none yet, or half written by a process that was killed

    def _last_words(self) -> str:
        lines = [line.strip() for line in (self.folder / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()]
        told = [line for line in lines if line and not line.startswith(("File ", "^", "Traceback"))]
        return told[-1][:300] if told else "its log is empty"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time starts or stops it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written ({error.strerror}): set HLS_FOUNDRY_HOME to a folder that can") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _answers_within(dashboard: Dashboard, seconds: float) -> bool:
    """Whether it answers in time; False at once where its process ends."""
    deadline = time.monotonic() + seconds
    while not dashboard.answers():
        if dashboard.process() is None or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _check_installed() -> None:
    absent = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if absent:
        version = importlib.metadata.version("zenml")
        raise ConfigError(
            f"ZenML's server is not installed (no module '{absent[0]}'): make install, or pip install 'zenml[server]=={version}'"
        )


def _listen(port: int | None, former: int | None) -> socket.socket:
    """A listening socket on `port`, or on the former one, or on a free one. Raises ConfigError where `port` is taken."""
    for candidate in [port] if port is not None else [*filter(None, [former]), 0]:
        listening = socket.socket()
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HOST, candidate or 0))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            reason = error.strerror
    raise ConfigError(f"port {port} cannot be used for the dashboard ({reason}): choose another with --port, or leave it out")
