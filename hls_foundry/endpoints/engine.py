"""Finds the container engine of this machine, docker or podman, and says in one line why there is none that can be used."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from hls_foundry.errors import EndpointError

ENGINES = ("docker", "podman")
ANSWER_S = 60.0  # podman's first call sets up its storage
BUILDKIT_IN_CLIENT_BEFORE = 23  # later docker clients build with the buildx plugin only

# What the engines say, and what to do about it; each message names the engine.
_REFUSALS = (
    (
        "permission denied",
        "{engine} may not be used by this user (permission denied): join the group of its socket, or use podman as yourself",
    ),
    ("cannot connect", "{engine} is installed but not running: start its service, or set DOCKER_HOST to where it answers"),
    ("is the docker daemon running", "{engine} is installed but not running: start its service, or set DOCKER_HOST to where it answers"),
    ("newuidmap", "podman cannot map this user's ids: install uidmap and give the user ranges in /etc/subuid and /etc/subgid"),
    ("subuid", "podman cannot map this user's ids: install uidmap and give the user ranges in /etc/subuid and /etc/subgid"),
)


@dataclass(frozen=True)
class Engine:
    """An engine that answered."""

    program: str
    build: tuple[str, ...]
    """What starts a build of an image in Docker's own format, which SageMaker asks for; empty: this engine only runs images."""
    environment: tuple[tuple[str, str], ...] = ()
    """What a build needs besides."""

    @property
    def is_podman(self) -> bool:
        return self.program == "podman"


def find_engine(wanted: str | None = None) -> Engine:
    """The engine `wanted`, else the first of docker and podman that answers. Raises EndpointError where none does."""
    installed = [name for name in ([wanted] if wanted else ENGINES) if shutil.which(name)]
    if not installed:
        raise EndpointError(f"no container engine: {wanted or 'neither docker nor podman'} is on the PATH: install podman or docker")
    refusals = []
    for name in installed:
        said = _asked([name, "info"])
        if said is None:
            return _engine(name)
        refusals.append(refusal(name, said))
    raise EndpointError("no container engine that can be used: " + "; ".join(refusals))


def _engine(name: str) -> Engine:
    if name == "podman":
        return Engine(name, (name, "build", "--format", "docker"))
    if _asked([name, "buildx", "version"]) is None:
        # Without provenance: with it the image becomes an index of OCI manifests.
        return Engine(name, (name, "buildx", "build", "--provenance=false", "--output", "type=docker"))
    version = subprocess.run([name, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True, check=False).stdout
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < BUILDKIT_IN_CLIENT_BEFORE:
        return Engine(name, (name, "build"), (("DOCKER_BUILDKIT", "1"),))
    return Engine(name, ())


def _asked(command: Sequence[str]) -> str | None:
    """None where `command` succeeds, else what it said."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_S:g} s"
    except OSError as error:
        return str(error)
    said = answer.stderr.strip() or answer.stdout.strip() or f"exit code {answer.returncode}"
    return said if answer.returncode else None


def refusal(engine: str, said: str) -> str:
    """What to do about something that the engine did not do, from what it said, in one line."""
    for sign, meaning in _REFUSALS:
        if sign in said.lower():
            return meaning.format(engine=engine)
    return f"{engine} says: {(said.strip() or 'nothing').splitlines()[-1][:200]}"
