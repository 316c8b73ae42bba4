"""Checkpoints of a training in progress: `checkpoints/step-00000120.pt` with its SHA-256 beside it, the last two kept.

A file appears under its name only when it is whole; one that was damaged afterwards is recognised, and the one before is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from hls_foundry.errors import TrainingError
from hls_foundry.training.request import write_atomically

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


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain values, among them "step" and "digest"). Raises TrainingError; the earlier ones stay."""
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
