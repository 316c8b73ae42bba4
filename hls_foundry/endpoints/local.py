"""Local endpoints: the serving application in a process or a container of its own, which outlives run.py, at an address that
redeployments keep.

    HOME/NAME.lock            held while the endpoint is changed
    HOME/NAME/endpoint.json   what runs (below), replaced atomically
    HOME/NAME/models/…        the bundles, copied: deleting an artifact does not take the endpoint down at its next start
    HOME/NAME/logs/…          one file a server process; of a container, once it is gone

A redeployment starts the new server beside the old one on a port of its own, checks it there, lets it answer on the endpoint's listening
socket, which both share, and then stops the old one. Every process is on file from its start on, so what a killed deployment left
running is found and stopped by the next. A container takes the place of a process, and the other way round, in the same manner.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.container import ContainerSpec, ServerContainer
from hls_foundry.endpoints.local_endpoint import Endpoint, Server, server_of
from hls_foundry.endpoints.process import start_server
from hls_foundry.errors import EndpointError

HOST = "127.0.0.1"
SCHEMA = 1
KEPT_LOGS = 5
PORT_RELEASE_S, ENDING_S = 3.0, 1.0
Check = Callable[[EndpointClient], None]


class LocalEndpoints:
    """The endpoints of one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()

    def deploy(
        self,
        name: str,
        bundle: Path,
        *,
        sha256: str,
        model_version: str,
        port: int | None = None,
        check: Check | None = None,
        environment: Mapping[str, str] | None = None,
        container: ContainerSpec | None = None,
        ready_seconds: float = 120.0,
    ) -> Endpoint:
        """Serve `bundle` (its folder or model.tar.gz, of digest `sha256`) as endpoint `name`; returns when it answers.

        `port`: none keeps the endpoint's, or takes a free one. `check` gets a client of the new server before it takes over; what it
        raises is raised here, with the old server still answering. `environment` adds to the server's. `container`: what to run it in;
        none: a process. An endpoint that runs healthily with all of this the same is left as it is, and `check` is run against it.

        Raises EndpointError (one line): the server ends or is not ready in `ready_seconds`, the port is taken, the bundle is not there.
        """
        _check_name(name)
        extra = dict(environment or {})
        with self._locked(name):
            old = self._swept(name)
            same = old and (old.sha256, old.environment, old.container) == (sha256, extra, container)
            if old and same and port in (None, old.port):
                with EndpointClient(old.url) as client:
                    if client.ping():
                        if check:
                            check(client)
                        kept = replace(old, model_version=model_version)
                        self._record(kept)
                        return kept
            folder = self.home / name
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # control sockets and the scenes' addresses in the logs are the user's own
            public = self._public_socket(name, old, port)
            with public, _listen(0) as checked:
                copy = _copy(bundle, folder / "models", for_all=container is not None)
                what = _What(name, copy, sha256, model_version, extra, container)
                new = self._start(what, public, checked)
                try:
                    new = _contained(new, folder, public, checked)
                    self._check(new, check, ready_seconds)
                    new.endpoint.process.open_port(folder)
                    self._record(new.endpoint, leftover=[old.process] if old else [])
                except BaseException:
                    self._discard(new.endpoint, old)
                    raise
            if old:
                old.process.stop()
            self._record(new.endpoint)
            self._tidy(new.endpoint)
            return new.endpoint

    def list(self) -> list[Endpoint]:
        """All endpoints on file, by name; `running` says which answer."""
        names = sorted(path.parent.name for path in self.home.glob("*/endpoint.json"))
        return [endpoint for name in names if (endpoint := self._read(name)[0]) is not None]

    def get(self, name: str) -> Endpoint:
        """Raises EndpointError where there is none of that name."""
        endpoint = self._read(name)[0]
        if endpoint is None:
            known = ", ".join(endpoint.name for endpoint in self.list()) or "none"
            raise EndpointError(f"no endpoint '{name}' in {self.home} (there are: {known})")
        return endpoint

    def delete(self, name: str) -> None:
        """Stop the endpoint (requests in flight are answered) and remove its folder. Raises EndpointError."""
        _check_name(name)
        with self._locked(name):
            endpoint, leftover = self._read(name)
            if endpoint is None and not leftover:
                self.get(name)  # raises, naming those that there are
            for process in [*leftover, *([endpoint.process] if endpoint else [])]:
                process.stop()
            shutil.rmtree(self.home / name)

    def logs(self, name: str, lines: int = 200) -> str:
        """The last `lines` lines of the running server's log. Raises EndpointError."""
        return "\n".join(self.get(name).log_lines(lines))

    # -- a deployment, step by step

    def _public_socket(self, name: str, old: Endpoint | None, port: int | None) -> socket.socket:
        """The endpoint's listening socket: the running server's own, or a new one."""
        if old and port in (None, old.port):
            return old.process.public_socket(self.home / name)
        stopped = None if old else self._read(name)[0]
        former = stopped.port if stopped else None
        # A process that was killed may hold its port for a moment after it has gone: its threads end after it.
        deadline = time.monotonic() + (PORT_RELEASE_S if former and port in (None, former) else 0)
        try:
            while True:
                try:
                    return _listen(port or former or 0)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        except OSError as error:
            if port is None:  # the former port has another owner by now
                return _listen(0)
            raise EndpointError(f"port {port} cannot be used for endpoint '{name}' ({error.strerror}): free it or choose another") from None

    def _start(self, what: _What, public: socket.socket, checked: socket.socket) -> _Started:
        """Start a process, or plan a container, and put it on file as one to be stopped, for as long as it is not the endpoint's."""
        folder = self.home / what.name
        log = folder / "logs" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.log"
        mark, port = uuid.uuid4().hex[:8], public.getsockname()[1]
        server: Server
        if what.container is None:
            settings = {"SM_MODEL_DIR": str(what.bundle), "HLS_MODEL_SHA256": what.sha256, **what.environment}
            server = start_server(folder, f"{mark}.sock", public, checked, log, settings)
        else:  # its name is known before it runs
            engine, memory = what.container.engine, what.container.memory_mb
            server = ServerContainer(engine, f"hls-{what.name}-{mark}", f"{mark}.shared", str(log), memory)
        new = Endpoint(
            name=what.name, url=f"http://{HOST}:{port}", port=port, sha256=what.sha256, model_version=what.model_version,
            since=datetime.now(UTC).isoformat(timespec="seconds"), target="container" if what.container else "local",
            bundle=str(what.bundle), log=str(log), process=server, environment=what.environment, container=what.container,
        )  # fmt: skip
        try:
            self._record(self._read(what.name)[0], leftover=[server], name=what.name)
        except BaseException:
            server.stop(0)
            raise
        return _Started(new, f"http://{HOST}:{checked.getsockname()[1]}")

    def _check(self, new: _Started, check: Check | None, ready_seconds: float) -> None:
        """Wait until the new server is ready, then run `check` against it."""
        endpoint, deadline = new.endpoint, time.monotonic() + ready_seconds
        with EndpointClient(new.check_url) as client:
            while not client.ping():
                if not endpoint.running:
                    raise EndpointError(f"endpoint '{endpoint.name}' did not start: {endpoint.last_words()} (log: {endpoint.log})")
                if time.monotonic() > deadline:
                    raise EndpointError(f"endpoint '{endpoint.name}' is not ready after {ready_seconds:g} s: see its log {endpoint.log}")
                time.sleep(0.05)
            try:
                if check:
                    check(client)
            except EndpointError:
                deadline = time.monotonic() + ENDING_S  # what its end does to a connection is seen before its end
                while endpoint.running and time.monotonic() < deadline:
                    time.sleep(0.05)
                if endpoint.running:
                    raise
                raise EndpointError(
                    f"endpoint '{endpoint.name}' ended in its first test: {endpoint.last_words()} (log: {endpoint.log})"
                ) from None

    def _discard(self, new: Endpoint, old: Endpoint | None) -> None:
        """Undo a failed deployment: the new server ends, the old one stays (or the former, stopped one stays on file)."""
        new.process.stop()
        former = old or self._read(new.name)[0]
        kept = former if former and former.process != new.process else None
        self._record(kept, name=new.name)
        if kept:
            self._tidy(kept)
        else:
            shutil.rmtree(self.home / new.name / "models", ignore_errors=True)
            (self.home / new.name / "endpoint.json").unlink(missing_ok=True)

    def _swept(self, name: str) -> Endpoint | None:
        """The running endpoint, after stopping what an interrupted deployment left; None where nothing runs."""
        endpoint, leftover = self._read(name)
        for process in leftover:
            process.stop()
        if endpoint and not endpoint.running:
            endpoint.process.stop(0)  # a container that has ended is there until it is removed
        if leftover:
            self._record(endpoint, name=name)
        return endpoint if endpoint and endpoint.running else None

    def _tidy(self, endpoint: Endpoint) -> None:
        """Remove bundles and control sockets that no server uses, and all but the latest logs."""
        folder = self.home / endpoint.name
        for model in (folder / "models").iterdir():
            if str(model) != endpoint.bundle:
                shutil.rmtree(model, ignore_errors=True)
        for control in [*folder.glob("*.sock"), *folder.glob("*.shared")]:
            if control.name != endpoint.process.control:
                control.unlink() if control.is_socket() else shutil.rmtree(control, ignore_errors=True)
        for log in sorted((folder / "logs").iterdir())[:-KEPT_LOGS]:
            if str(log) != endpoint.log:
                log.unlink(missing_ok=True)

    # -- what is on file

    def _record(self, endpoint: Endpoint | None, *, leftover: Sequence[Server] = (), name: str = "") -> None:
        """Write endpoint.json. `leftover`: processes that the next change of the endpoint stops."""
        path = self.home / (endpoint.name if endpoint else name) / "endpoint.json"
        content = {
            "schema": SCHEMA,
            "endpoint": asdict(endpoint) if endpoint else None,
            "leftover": [asdict(process) for process in leftover],
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(path)

    def _read(self, name: str) -> tuple[Endpoint | None, Sequence[Server]]:
        path = self.home / name / "endpoint.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            leftover = [server_of(**process) for process in content["leftover"]]
            held = content["endpoint"]
            if held and held.get("container"):
                held["container"] = ContainerSpec(**held["container"])
            return (Endpoint(**{**held, "process": server_of(**held["process"])}) if held else None), leftover
        except FileNotFoundError:
            return None, []
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"{path} is damaged ({type(error).__name__}): stop the endpoint's process and remove the folder") from None

    @contextmanager
    def _locked(self, name: str, seconds: float = 600.0) -> Iterator[None]:
        """Held by one deployment or deletion of `name` at a time, over all processes."""
        self.home.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + seconds
        with (self.home / f"{name}.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EndpointError(
                            f"endpoint '{name}' is being changed by another run for {seconds:g} s: try again later"
                        ) from None
                    time.sleep(0.1)
            yield


@dataclass(frozen=True)
class _What:
    """What a server is started with."""

    name: str
    bundle: Path
    sha256: str
    model_version: str
    environment: dict[str, str]
    container: ContainerSpec | None


@dataclass(frozen=True)
class _Started:
    endpoint: Endpoint
    check_url: str


def _contained(new: _Started, folder: Path, public: socket.socket, checked: socket.socket) -> _Started:
    """With its container running, where it is one; a process runs already."""
    endpoint, server = new.endpoint, new.endpoint.process
    if isinstance(server, ServerContainer) and endpoint.container is not None:
        settings = {"HLS_MODEL_SHA256": endpoint.sha256, **endpoint.environment}
        try:
            server = server.start(endpoint.container, folder, Path(endpoint.bundle), (public, checked), settings)
        except EndpointError as error:
            raise EndpointError(f"endpoint '{endpoint.name}' did not start: {error}") from None
        new = replace(new, endpoint=replace(endpoint, process=server))
    checked.close()  # it is the server's: with ours open, a client would wait for one that has ended
    return new


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    return listening


def _copy(bundle: Path, models: Path, *, for_all: bool) -> Path:
    """A copy of the bundle in a new folder under `models`; `for_all`: for a container's user as well. Raises EndpointError."""
    target = models / uuid.uuid4().hex[:12]
    try:
        if bundle.is_dir():
            shutil.copytree(bundle, target)
        else:
            target.mkdir(parents=True)
            shutil.copyfile(bundle, target / "model.tar.gz")
        for path in (target, *target.rglob("*")) if for_all else ():
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise EndpointError(f"the bundle {bundle} cannot be copied to {models} ({error.strerror or error}): check both") from None
    return target


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
        raise EndpointError(f"'{name}' cannot be an endpoint's name: use letters, digits, - and _, at most 63")
