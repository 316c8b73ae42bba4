"""Where this installation keeps its work: fetched chips, runs, published bundles, local endpoints."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
"""Where the code that runs lies: the checkout, or in a job on a cluster the copy that was frozen at submission."""

REVISION_FILE = ".revision"
"""In a frozen copy: the revision that it was made from."""


def checkout() -> Path:
    """`HLS_FOUNDRY_CHECKOUT`, else the repository: what relative paths and the default home count from.

    A job on a cluster runs a frozen copy of the code, but uses the places of the checkout that it was submitted from.
    """
    chosen = os.environ.get("HLS_FOUNDRY_CHECKOUT")
    return Path(chosen).expanduser().resolve() if chosen else REPOSITORY


def foundry_home() -> Path:
    """`HLS_FOUNDRY_HOME`, else `.foundry` in the checkout. The folder may not exist yet."""
    chosen = os.environ.get("HLS_FOUNDRY_HOME")
    return Path(chosen).expanduser().resolve() if chosen else checkout() / ".foundry"


def resolve_path(path: str) -> Path:
    """`path` as given when absolute, else relative to the checkout, so that commands work from any folder."""
    given = Path(path).expanduser()
    return given if given.is_absolute() else checkout() / given
