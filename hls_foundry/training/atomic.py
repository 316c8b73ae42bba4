"""Files that appear whole under their name, or not at all. Imports next to nothing: the agents of nodes use it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hls_foundry.errors import TrainingError


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary name, so that a reader sees the old file or the whole new one. Raises TrainingError (disk full, …)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None
