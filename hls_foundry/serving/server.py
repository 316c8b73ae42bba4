"""Runs the application under uvicorn: sockets, signals, draining, and the handover of a public socket between two servers.

The handover is what a redeployment of a local endpoint uses. Two servers share one listening socket: the new one gets it, is checked on
a socket of its own, and is told `open` over its control socket; then the old one is told to stop. Connections wait in the queue of the
one socket all the time, so none is refused or reset. A process inherits both sockets. A container, which cannot, is sent them over the
control socket: they stay those of the host's network, so that the container needs none of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from hls_foundry.errors import EndpointError, FoundryError
from hls_foundry.serving.app import Serving, create_app
from hls_foundry.serving.logs import configure, log
from hls_foundry.serving.settings import ServingSettings

GRACE_S = 0.5  # for clients that are about to send on a kept connection: they get an answer and `Connection: close`
LISTENING_S = 30.0  # a container is sent its sockets while it imports torch
FORCED = 1


@dataclass(frozen=True)
class Handover:
    """How a local endpoint's server is reached: the path of its control socket, and the sockets that it inherits (file descriptors)."""

    control: Path
    public_fd: int | None = None
    check_fd: int | None = None


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to us, so that two can run in one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_listening(self) -> None:
        for server in self.servers:
            server.close()


class _Process:
    """The listeners of this process, all with the same application."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._listeners: list[_Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self, listening: socket.socket) -> None:
        """Answer on `listening`; returns when it does. The first listener starts and ends the application (ASGI lifespan)."""
        lifespan = "off" if self._listeners else "on"
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, loop="uvloop", http="httptools", ws="none", lifespan=lifespan,  # type: ignore[arg-type]
            server_header=False, proxy_headers=False, timeout_keep_alive=75,
        )  # fmt: skip
        listener = _Listener(config)
        self._listeners.append(listener)
        self._tasks.append(asyncio.create_task(listener.serve(sockets=[listening])))
        while not listener.started and not self._tasks[-1].done():
            await asyncio.sleep(0.005)

    async def drain(self, seconds: float) -> bool:
        """Stop accepting, answer what is in flight, close. False where `seconds` did not suffice."""
        for listener in self._listeners:
            listener.stop_listening()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while any(listener.server_state.connections for listener in self._listeners):
                    await asyncio.sleep(0.02)
        for listener in self._listeners:
            listener.should_exit = True
        # The listener that holds the lifespan goes last: the others still need the application.
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        return not late


async def _serve(settings: ServingSettings, handover: Handover | None) -> int:
    app = create_app(settings)
    serving: Serving = app.state.serving
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.stop.set)
    process = _Process(app)
    if handover is None or handover.check_fd is None:
        await process.listen(bind(settings.host, settings.port))
        log.info("listening host=%s port=%d", settings.host, settings.port)
    else:
        await process.listen(socket.socket(fileno=handover.check_fd))
    if handover is not None:
        _Control(handover, process, loop).start()
        log.info("started pid=%d: waits for the check before it opens the endpoint's port", os.getpid())
    await serving.stop.wait()
    if serving.failed is not None:
        log.error("load_failed: %s", serving.failed)
    else:
        log.info("draining seconds=%g", settings.drain_seconds)
    serving.draining = True
    drained = await process.drain(settings.drain_seconds)
    log.info("stopped" if drained else "stopped with requests unanswered: HLS_DRAIN_SECONDS is over")
    if not drained:
        sys.stderr.flush()
        os._exit(FORCED)  # a prediction is still on its thread, and Python would wait for it
    return FORCED if serving.failed is not None else 0


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises EndpointError where the port is taken or not ours to take."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise EndpointError(f"port {port} on {host} cannot be used ({error.strerror}): free it or choose another") from None
    return listening


class _Control:
    """The control socket: takes the sockets to answer on (`check`, `public`), opens the public one (`open`), hands it over (`socket`)."""

    def __init__(self, handover: Handover, process: _Process, loop: asyncio.AbstractEventLoop) -> None:
        self._process, self._loop = process, loop
        self._public = None if handover.public_fd is None else socket.socket(fileno=handover.public_fd)
        self._listening = socket.socket(socket.AF_UNIX)
        made = handover.control.with_suffix(".tmp")  # under its name once it can be connected to
        made.unlink(missing_ok=True)
        self._listening.bind(str(made))
        # A container's user is none of the host's: there the folder that holds the socket's keeps others out.
        made.chmod(0o666 if handover.check_fd is None else 0o600)
        self._listening.listen(4)
        made.replace(handover.control)

    def start(self) -> None:
        threading.Thread(target=self._answer, name="control", daemon=True).start()

    def _answer(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection:
                connection.settimeout(5)
                try:
                    command, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
                    self._obey(connection, command, [socket.socket(fileno=number) for number in descriptors])
                except (OSError, TimeoutError) as error:
                    log.warning("control failed: %s", error)

    def _obey(self, connection: socket.socket, command: bytes, given: list[socket.socket]) -> None:
        if command == b"check" and given:
            self._listen(given[0])
            connection.sendall(b"ok")
        elif command == b"public" and given:
            self._public = given[0]
            connection.sendall(b"ok")
        elif command == b"open" and self._public is not None:
            # A copy: the listener closes its own when it stops, and a successor may still ask for the socket.
            self._listen(self._public.dup())
            log.info("open port=%d", self._public.getsockname()[1])
            connection.sendall(b"ok")
        elif command == b"socket" and self._public is not None:
            socket.send_fds(connection, [b"ok"], [self._public.fileno()])

    def _listen(self, listening: socket.socket) -> None:
        asyncio.run_coroutine_threadsafe(self._process.listen(listening), self._loop).result(LISTENING_S)


def run(handover: Handover | None = None) -> int:
    """Serve until SIGTERM; the process's exit code: 0 after draining."""
    configure()
    try:
        return int(uvloop.run(_serve(ServingSettings.from_environment(), handover)))
    except FoundryError as error:
        log.error("cannot start: %s", error)
        return 2
