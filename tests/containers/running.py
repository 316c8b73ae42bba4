"""Images built for a test, and a container of the serving one: a real engine, a port of its own, gone at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from containers.build import ImageError, Order, build, inspect
from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.endpoints.container import SHARED
from hls_foundry.endpoints.control import SOCKET, hand_over, open_port
from hls_foundry.endpoints.engine import Engine, find_engine
from hls_foundry.errors import EndpointError
from tests.conftest import missing
from tests.serving.running import free_port

START_S, STOP_S = 60.0, 30
CONTAINER_PORT = 8080
MODEL = "/opt/ml/model"


@contextmanager
def built(name: str) -> Iterator[tuple[Engine, str]]:
    """The engine, and the image of containers/`name` as this checkout makes it. Its layers stay for the next who builds."""
    order = Order(name, tag=f"hls-foundry-{name}:test-{os.getpid()}")
    try:
        engine = find_engine()
        build(engine, order)
    except (EndpointError, ImageError) as error:
        missing(str(error))
    yield engine, order.reference
    subprocess.run([engine.program, "rmi", "--no-prune", order.reference], capture_output=True, check=False)


def readable(folder: Path) -> Path:
    """The container's user is another."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def mounted(folder: Path, at: str = MODEL) -> tuple[str, str]:
    """Options of `engine run`: the folder is there, to be read."""
    return "--volume", f"{folder}:{at}:ro"


@dataclass(frozen=True)
class Image:
    """The image under test."""

    engine: str
    name: str

    def run(self, *options: str, port: int = CONTAINER_PORT, network: bool = True, control: Path | None = None) -> RunningContainer:
        return RunningContainer(self.engine, self.name, *options, port=port, network=network, control=control)

    def tells(self, template: str) -> str:
        return inspect(find_engine(self.engine), self.name, template)


class RunningContainer:
    """`engine run … image` with no rights at all and nothing to write to but /tmp; a context manager that leaves no container behind.

    `control`: an empty folder; the container then gets its one port handed over through it, as a local endpoint does.
    """

    def __init__(
        self, engine: str, image: str, *options: str, port: int = CONTAINER_PORT, network: bool = True, control: Path | None = None
    ) -> None:
        self.engine, self.name = engine, f"hls-test-{uuid.uuid4().hex[:12]}"
        self.port = free_port()
        published = ("--publish", f"127.0.0.1:{self.port}:{port}") if network else ("--network", "none")
        confined = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        # Two torch threads would fight with the other tests on this machine's two cores.
        self.started = time.monotonic()
        given = ("run", "--detach", "--name", self.name, *confined, *published, "--env", "OMP_NUM_THREADS=1", *options)
        if control is None:
            self.command(*given, image, "serve")
        else:
            control.chmod(0o777)
            self.command(*given, "--volume", f"{control}:{SHARED}", image, "serve", "--control", f"{SHARED}/{SOCKET}")
            self._hand_over(control)
        self.client = EndpointClient(f"http://127.0.0.1:{self.port}", timeout=60)

    def _hand_over(self, control: Path) -> None:
        while not (control / SOCKET).exists():
            assert self.is_running(), self.log()
            assert time.monotonic() < self.started + START_S, self.log()
            time.sleep(0.02)
        with socket.create_server(("127.0.0.1", self.port)) as public, socket.create_server(("127.0.0.1", 0)) as check:
            hand_over(control, SOCKET, public=public, check=check)
        open_port(control, SOCKET)

    def command(self, *arguments: str) -> str:
        """The engine's output."""
        done = subprocess.run([self.engine, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `command` in the container."""
        return subprocess.run([self.engine, "exec", self.name, *command], capture_output=True, text=True, check=False)

    def wait_ready(self) -> float:
        """Seconds from before the container was made to /ping's first 200."""
        while not self.client.ping():
            assert self.is_running(), self.log()
            assert time.monotonic() < self.started + START_S, self.log()
            time.sleep(0.02)
        return time.monotonic() - self.started

    def is_running(self) -> bool:
        return self.command("inspect", "--format", "{{.State.Running}}", self.name) == "true"

    def wait_end(self) -> int:
        """The exit code of a container that ends by itself; /ping must never say 200."""
        while self.is_running():
            assert not self.client.ping()
            assert time.monotonic() < self.started + START_S, self.log()
            time.sleep(0.05)
        return self.exit_code()

    def stop(self, seconds: int = STOP_S) -> int:
        """SIGTERM, and after `seconds` SIGKILL; the exit code."""
        self.command("stop", "-t", str(seconds), self.name)
        return self.exit_code()

    def exit_code(self) -> int:
        return int(self.command("inspect", "--format", "{{.State.ExitCode}}", self.name))

    def log(self) -> str:
        done = subprocess.run([self.engine, "logs", self.name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def __enter__(self) -> RunningContainer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        subprocess.run([self.engine, "rm", "--force", "--volumes", self.name], capture_output=True, check=False)
