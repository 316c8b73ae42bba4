"""Which code this is: its Git revision, and the versions of the packages that decide results."""

from __future__ import annotations

import subprocess
from importlib import metadata

from hls_foundry.home import REPOSITORY, REVISION_FILE

PACKAGES = ("hls-foundry", "torch", "accelerate", "numpy", "rasterio", "safetensors")


def code_version() -> str:
    """The Git revision of the working tree, with `+changes` where it has uncommitted ones; `unknown` outside a checkout.

    A copy that was frozen at submission carries that of its origin: it may lie inside another checkout, or its own later state.
    """
    frozen = REPOSITORY / REVISION_FILE
    if frozen.is_file():
        return frozen.read_text(encoding="utf-8").strip()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def package_versions() -> dict[str, str]:
    """Version by name of the packages that decide results."""
    return {name: metadata.version(name) for name in PACKAGES}
