"""Remembers to which folder a source was fetched, so that machines without a network, such as compute nodes, find it there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hls_foundry.errors import SourceError

OFFLINE = "HLS_FOUNDRY_OFFLINE"
"""Environment variable that forbids reaching out for chips: what an earlier `run.py fetch` brought is used, whatever the source has now."""


def offline() -> bool:
    """Whether this process may not reach out."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def remember(cache: Path, source: str, layout: str, folder: Path) -> None:
    """Note that `source` lies in `folder`. Raises SourceError where the note cannot be written."""
    note = _note(cache, source, layout)
    content = json.dumps({"source": source, "layout": layout, "folder": str(folder)})
    temporary = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        if note.is_file() and note.read_text(encoding="utf-8") == content:
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(note)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SourceError(f"cannot write {note}: {error.strerror}; free space there or set HLS_FOUNDRY_HOME elsewhere") from None


def recall(cache: Path, source: str, layout: str) -> Path:
    """The folder that `source` was last fetched to. Raises SourceError where it was not, or the folder is gone."""
    try:
        folder = Path(json.loads(_note(cache, source, layout).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        folder = None
    if folder is None or not folder.is_dir():
        raise SourceError(
            f"{source} has not been fetched to {cache}, and {OFFLINE} forbids reaching out: run python run.py fetch on a login node"
        )
    return folder


def _note(cache: Path, source: str, layout: str) -> Path:
    return cache / ".fetched" / f"{hashlib.sha256(f'{layout} {source}'.encode()).hexdigest()[:24]}.json"
