"""What is on file of a rehearsal: HOME/rehearsal/rehearsal.json."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from hls_foundry.errors import EndpointError
from stacks.rehearsal.processes import Process

SCHEMA = 1
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Record:
    """A rehearsal, from the moment that its first process runs. `complete` once both answered."""

    started: str  # ISO 8601, UTC
    control_port: int
    runtime_port: int
    control: Process | None = None
    runtime: Process | None = None
    complete: bool = False
    engine: str = ""
    """docker or podman, where endpoints are containers; "": they are processes."""

    @property
    def control_url(self) -> str:
        return f"http://{HOST}:{self.control_port}"

    @property
    def runtime_url(self) -> str:
        return f"http://{HOST}:{self.runtime_port}"


def read_record(folder: Path) -> Record | None:
    """The record in `folder`; None where there is none. Raises EndpointError where it is damaged."""
    path = folder / "rehearsal.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held = {name: content[name] for name in ("started", "control_port", "runtime_port", "complete")}
        control, runtime = (Process(**content[name]) if content[name] else None for name in ("control", "runtime"))
        return Record(**held, control=control, runtime=runtime, engine=str(content.get("engine", "")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EndpointError(f"{path} cannot be read ({error.strerror}): is the rehearsal another user's?") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EndpointError(f"{path} is damaged ({type(error).__name__}): python run.py rehearsal down clears it away") from None


def write_record(folder: Path, record: Record) -> None:
    """Replace the record in `folder` atomically. Raises EndpointError (disk full, …)."""
    path = folder / "rehearsal.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EndpointError(f"{path} cannot be written ({error.strerror}): set HLS_FOUNDRY_HOME to a folder that can") from None
