"""The rehearsal's endpoints as containers of the image that CreateModel names: what docker or podman is told.

The image on this machine gets the name that it has in the rehearsal's ECR. A container is on this machine's network, since the stand-ins
of S3 and of the role's credentials answer on 127.0.0.1 only.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hls_foundry import __version__
from hls_foundry.endpoints.container import image_id
from hls_foundry.endpoints.engine import find_engine, refusal
from hls_foundry.errors import EndpointError
from stacks.aws.rehearsal.account import IMAGE

ENGINE = "HLS_REHEARSAL_ENGINE"
"""In the environment of the runtime: the engine that it starts containers with; not there: it starts processes."""

LABEL = "hls-foundry.rehearsal"
MODEL, MODELS = "/opt/ml/model", "/opt/ml/models"  # where SageMaker puts them
_ENGINES_OWN = ("DOCKER_", "CONTAINERS_", "CONTAINER_", "XDG_", "DBUS_")
_HEEDED = (*_ENGINES_OWN, "PATH", "HOME", "TMPDIR", "LD_")
ENGINE_S = 120.0


def default_image() -> str:
    """As `make images` of this version calls it."""
    return f"hls-foundry-serve:{__version__}"


def engine_with(image: str) -> str:
    """The engine of this machine that has `image`, which it then knows by its name in the rehearsal's ECR too. Raises EndpointError."""
    engine = find_engine().program
    image_id(engine, image)
    _call(engine, "tag", image, IMAGE)
    return engine


def engine_environment() -> dict[str, str]:
    """The variables by which an engine's client finds the engine."""
    return {name: value for name, value in os.environ.items() if name.startswith(_ENGINES_OWN)}


def has_image(engine: str, image: str) -> bool:
    """Whether the engine has it."""
    return subprocess.run([engine, "image", "inspect", _known_as(image)], capture_output=True, check=False).returncode == 0


def _known_as(image: str) -> str:
    """The name that this machine has for it: what is given by digest is the one image in the rehearsal's ECR."""
    return IMAGE if image.startswith(f"{IMAGE.rpartition(':')[0]}@") else image


@dataclass(frozen=True)
class Contained:
    """A container: folders that it may read by their place in it, and the memory that it may take (of a serverless endpoint)."""

    name: str
    image: str
    mounts: Mapping[str, Path]
    environment: Mapping[str, str]
    memory_mb: int | None


def run_command(engine: str, home: Path, what: Contained) -> tuple[list[str], dict[str, str]]:
    """What runs a container of the rehearsal in `home` in the foreground, its log on our standard output; and with which environment.

    The engine takes the variables' values from there, so that no command line shows them; but for those that it would heed itself.
    """
    command = [engine, "run", "--rm", "--pull", "never", "--name", what.name, "--label", f"{LABEL}={home}"]
    command += ["--network", "host", "--security-opt", "label=disable"]  # SELinux would keep the model from it
    command += [] if what.memory_mb is None else ["--memory", f"{what.memory_mb}m", "--memory-swap", f"{what.memory_mb}m"]
    for target, source in what.mounts.items():
        command += ["--mount", f"type=bind,source={source},target={target},readonly"]
    handed = {name: value for name, value in what.environment.items() if not name.startswith(_HEEDED)}
    for variable, value in what.environment.items():
        command += ["--env", variable if variable in handed else f"{variable}={value}"]
    return [*command, _known_as(what.image), "serve"], {**os.environ, **handed}


def kill(engine: str, name: str) -> None:
    """End a container at once; nothing happens where it is gone."""
    subprocess.run([engine, "kill", name], capture_output=True, check=False)


def remove(engine: str, name: str) -> None:
    """Remove a container, running or not; nothing happens where it is gone."""
    subprocess.run([engine, "rm", "--force", "--volumes", name], capture_output=True, check=False)


def remove_all(engine: str, home: Path) -> int:
    """Remove the containers of the rehearsal in `home`; how many there were. Raises EndpointError where the engine does not answer."""
    names = _call(engine, "ps", "--all", "--filter", f"label={LABEL}={home}", "--format", "{{.Names}}").split()
    for name in names:
        remove(engine, name)
    return len(names)


def forget_image(engine: str) -> None:
    """Take the name in the rehearsal's ECR away from the image, which stays."""
    command = ["untag", IMAGE, IMAGE] if engine == "podman" else ["rmi", "--no-prune", IMAGE]
    subprocess.run([engine, *command], capture_output=True, check=False)


def _call(engine: str, *command: str) -> str:
    try:
        told = subprocess.run([engine, *command], capture_output=True, text=True, timeout=ENGINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EndpointError(f"{engine} {command[0]} does not answer ({type(error).__name__}): is it installed and running?") from None
    if told.returncode:
        raise EndpointError(refusal(engine, told.stderr))
    return told.stdout.strip()
