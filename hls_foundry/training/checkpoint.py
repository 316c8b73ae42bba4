"""Checkpoints of a training in progress: `checkpoints/step-00000120.pt` with its SHA-256 beside it, the last two kept.

A file appears under its name only when it is whole; one that was damaged afterwards is recognised, and the one before is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import uuid
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from hls_foundry.errors import Preempted, TrainingError
from hls_foundry.training.atomic import write_atomically

log = logging.getLogger(__name__)

KEPT = 2


class _Hashing:
    """A file to write to that knows the SHA-256 of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class Claim:
    """Whose turn it is to save in a folder: the process that claimed it last.

    When a node's Slurm daemon dies, the job starts again elsewhere while its old processes may well go on and still reach the shared
    file system. Those find here that their time is over.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "owner"
        self._mark = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4()}".encode()
        write_atomically(self._path, self._mark)

    def require(self) -> None:
        """Raises Preempted where another process has claimed the folder since."""
        try:
            current = self._path.read_bytes()
        except OSError:
            return  # swept away with the checkpoints
        if current != self._mark:
            number = int(signal.SIGTERM)
            raise Preempted(f"another process goes on with the training in {self._path.parent.parent}: this one stops", number)


def save_checkpoint(folder: Path, state: dict[str, Any], claim: Claim | None = None) -> Path:
    """Write `state` (tensors and plain values, among them "step" and "digest"). Raises TrainingError; the earlier ones stay.

    With a `claim` that another process has taken over, raises Preempted and writes nothing.
    """
    if claim:
        claim.require()
    path = folder / f"step-{state['step']:08d}.pt"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        write_atomically(path.with_suffix(".sha256"), hashing.sha256.hexdigest().encode())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TrainingError(f"checkpoint {path} cannot be written ({error}): free some space, then start again") from None
    for stale in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        stale.unlink(missing_ok=True)
        stale.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def load_latest(folder: Path, digest: str) -> dict[str, Any] | None:
    """The newest whole checkpoint in `folder`, or None. Raises TrainingError where it belongs to another training."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        state = _load(path)
        if state is None:
            continue
        if state.get("digest") != digest:
            raise TrainingError(f"{folder} holds checkpoints of another configuration or of other chips: delete it or train elsewhere")
        return state
    return None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        expected = path.with_suffix(".sha256").read_text().strip()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ValueError("its SHA-256 is not the one it was written with")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        log.warning("checkpoint %s is damaged (%s): going back to the one before", path, str(error).splitlines()[0])
        return None
    return state


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """`weights` as safetensors, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(path, safetensors_bytes(whole, metadata))
