"""The packages that requirements.lock pins, and how an installation differs from them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from hls_foundry.home import REPOSITORY


def locked_packages() -> dict[str, str]:
    """Name → version of every line of requirements.lock."""
    locked = {}
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, pinned, version = line.partition("==")
        if pinned and not line.startswith(("#", " ")):
            locked[name] = version.split(" ")[0]
    return locked


def differences(version: Callable[[str], str] = metadata.version) -> list[str]:
    """One entry a package that is missing here or has another version."""
    wrong = []
    for name, wanted in locked_packages().items():
        try:
            installed = version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed.split("+")[0] != wanted:  # +cpu and the like name a build, not another version
            wrong.append(f"{name} {installed} instead of {wanted}")
    return wrong
