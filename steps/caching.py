"""When a cached result may stand: the same inputs, the same parameters, and the same code of the rooms that made it."""

from __future__ import annotations

from pathlib import Path

from zenml.config.cache_policy import CachePolicy

from hls_foundry.home import REPOSITORY


def depends_on(*rooms: str) -> CachePolicy:
    """A cache policy that also covers the source files of `rooms` (folders of hls_foundry)."""
    package = Path("hls_foundry")
    files = [package / "config.py"]
    for room in rooms:
        files += sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / package / room).rglob("*.py"))
    return CachePolicy(file_dependencies=[str(path) for path in files])
