"""Fixtures that every room's tests share: the real data next door, and skips that HLS_REQUIRE=all turns into failures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def missing(what: str) -> None:
    """Skip the test for want of `what`; with HLS_REQUIRE=all fail it."""
    if os.environ.get("HLS_REQUIRE") == "all":
        pytest.fail(f"HLS_REQUIRE=all, but {what}")
    pytest.skip(what)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the repository."""
    folder = Path(os.environ.get("HLS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"no real imagery at {folder} (../shared/data or HLS_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that runs headless."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    missing("no Chromium on the PATH: make system installs it")
    raise AssertionError  # unreachable: missing() raises
