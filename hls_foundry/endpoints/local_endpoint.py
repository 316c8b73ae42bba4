"""A local endpoint as it is on file, and what it says of itself: whether its server runs, why not, and how to call it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hls_foundry.endpoints.container import ContainerSpec, ServerContainer
from hls_foundry.endpoints.deployed import Deployed
from hls_foundry.endpoints.process import ServerProcess
from hls_foundry.errors import EndpointError

Server = ServerProcess | ServerContainer


@dataclass(frozen=True, kw_only=True)
class Endpoint(Deployed):
    """A local endpoint as it is on file. `since`: when its server was started. `container`: what it runs in; None: a process."""

    target: str = "local"
    kind: str = "realtime"
    port: int
    bundle: str  # the copy that it serves
    log: str
    process: Server
    environment: dict[str, str] = field(default_factory=dict)
    container: ContainerSpec | None = None

    @property
    def running(self) -> bool:
        return self.process.alive()

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        why = self.process.ending() if isinstance(self.process, ServerContainer) else ""
        return f"stopped ({why})" if why else "stopped"

    def log_lines(self, lines: int) -> list[str]:
        """The last lines of its server's log; of a container that somebody removed there are none. Raises EndpointError."""
        if isinstance(self.process, ServerContainer) and (said := self.process.last_lines(lines)):
            return said
        try:
            return Path(self.log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise EndpointError(f"the log {self.log} cannot be read ({error.strerror})") from None

    def last_words(self) -> str:
        """Why its server ended, in one line: what its engine says, its last error, else the end of its log."""
        if isinstance(self.process, ServerContainer) and (why := self.process.ending()):
            return why
        lines = [line for line in self.log_lines(50) if line.strip()]
        errors = [line for line in lines if " error " in line]
        return (errors or lines or ["its log is empty"])[-1][:400]

    def calls(self, run: str, option: str = "") -> list[tuple[str, str]]:
        return [
            ("call", f"curl --data-binary @SCENE.tif -H 'Content-Type: image/tiff' {self.url}/invocations"),
            ("or", f"{run} predict SCENE.tif --endpoint {self.name} --out polygons.geojson"),
        ]


def server_of(**values: Any) -> Server:
    """The server whose fields are on file."""
    return ServerContainer(**values) if "engine" in values else ServerProcess(**values)
