"""What is on file of a rehearsal cluster: HOME/cluster/cluster.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hls_foundry.errors import SlurmError
from stacks.rehearsal.processes import Process
from stacks.slurm.rehearsal_config import Shape

SCHEMA = 1
FOLDER_PREFIX = "hls-slurm-"


@dataclass(frozen=True)
class Record:
    """A rehearsal cluster, from the moment that it has a folder. `complete` once all its nodes were ready."""

    folder: str
    shape: Shape
    identity: str
    started: str  # ISO 8601, UTC
    subnet: str = ""  # network "isolated" only
    addresses: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, Process] = field(default_factory=dict)  # by "munged", "slurmctld", or a node's name
    complete: bool = False

    @property
    def slurm_conf(self) -> str:
        return f"{self.folder}/etc/slurm.conf"


def read_record(folder: Path) -> Record | None:
    """The record in `folder`; None where there is none. Raises SlurmError where it is damaged."""
    path = folder / "cluster.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held = {name: content[name] for name in ("folder", "identity", "started", "subnet", "addresses", "complete")}
        if not Path(held["folder"]).name.startswith(FOLDER_PREFIX):  # down deletes it
            raise ValueError(held["folder"])
        processes = {name: Process(**process) for name, process in content["processes"].items()}
        return Record(**held, shape=Shape(**content["shape"]), processes=processes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SlurmError(f"{path} cannot be read ({error.strerror}): is the cluster another user's?") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlurmError(f"{path} is damaged ({type(error).__name__}): end the cluster's processes and delete the file") from None


def write_record(folder: Path, record: Record) -> None:
    """Replace the record in `folder` atomically. Raises SlurmError (disk full, …)."""
    path = folder / "cluster.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    content = {"schema": SCHEMA, "slurm_conf": record.slurm_conf, "nodes": record.shape.names, "mode": record.shape.network}
    try:
        temporary.write_text(json.dumps({**content, **asdict(record)}, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SlurmError(f"{path} cannot be written ({error.strerror}): set HLS_FOUNDRY_HOME to a folder that can") from None
