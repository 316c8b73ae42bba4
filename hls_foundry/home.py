"""Where this installation keeps its work: fetched chips, runs, published bundles, local endpoints."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def foundry_home() -> Path:
    """`HLS_FOUNDRY_HOME`, else `.foundry` in the repository. The folder may not exist yet."""
    chosen = os.environ.get("HLS_FOUNDRY_HOME")
    return Path(chosen).expanduser().resolve() if chosen else REPOSITORY / ".foundry"


def resolve_path(path: str) -> Path:
    """`path` as given when absolute, else relative to the repository, so that commands work from any folder."""
    given = Path(path).expanduser()
    return given if given.is_absolute() else REPOSITORY / given
