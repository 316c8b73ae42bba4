"""The doctor's look at what an endpoint in a container needs: an engine that answers, and the serving image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hls_foundry import __version__
from hls_foundry.endpoints.container import image_id, image_label, image_name
from hls_foundry.endpoints.engine import find_engine
from hls_foundry.errors import FoundryError

if TYPE_CHECKING:
    from cli.doctor import Check
    from hls_foundry.endpoints.settings import ContainerSettings


def check_container(settings: ContainerSettings) -> Iterator[Check]:
    """Engine, then image; without an engine the image is not asked for."""
    from cli.doctor import Check

    try:
        engine = find_engine(settings.engine).program
    except FoundryError as error:
        yield Check("engine", False, "none", str(error))
        return
    yield Check("engine", True, f"{engine} answers")
    name = image_name(settings)
    try:
        digest = image_id(engine, name)
        version = image_label(engine, name, "org.opencontainers.image.version")
    except FoundryError as error:
        yield Check("image", False, "not usable", str(error))
        return
    found = f"{name}, {digest[:19]}, version {version or 'unknown'}"
    yield Check("image", version in ("", __version__), found, f"this checkout is version {__version__}: build it again (make images)")
