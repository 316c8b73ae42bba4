"""Builds the images with docker or podman, whichever is there: `make images`, or `python -m containers.build`. Needs nothing but Python."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.endpoints.engine import ENGINES, Engine, find_engine
from hls_foundry.errors import FoundryError

ROOT = Path(__file__).resolve().parents[1]
BASE = "python:3.11-slim-bookworm"
ACCELERATORS = ("cpu", "cuda")
KEPT_LINES = 200

# What a failed build says, and what to do about it. The first that is found counts.
_FAILURES = (
    (
        r"initializing source docker://|pinging container registry|failed to resolve source|pull access denied|short-name|manifest unknown",
        "the base image {base} cannot be fetched: look at network and login, load it into {engine} first, or name another (--base)",
    ),
    (
        r"No matching distribution found for (torch\S*)",
        "pip finds no {0}, which PyPI does not hold: name an index or a folder that does in a pip.conf (--pip-conf FILE); "
        "PyTorch's installation page has the index of its CPU builds",
    ),
    (r"DO NOT MATCH THE HASHES", "a package is not the one in the lock: look at the index that pip was given, or lock again (make lock)"),
    (
        r"CERTIFICATE_VERIFY_FAILED|name resolution|NewConnectionError|ConnectTimeoutError|No matching distribution found",
        "pip cannot fetch packages inside the build: look at its network, or give it your index and certificate (--pip-conf FILE)",
    ),
    (r"(?i)no space left on device", "no space left for the layers: {engine} system prune gives back what is unused"),
    (r"(?i)exec format error", "the base image {base} is for another architecture than this machine: name one for it (--base)"),
)


class ImageError(FoundryError):
    """An image cannot be built here."""


@dataclass(frozen=True)
class Order:
    """What to build: an image of the folder containers/NAME."""

    name: str
    accelerator: str = "cpu"
    base: str = BASE
    pip_conf: Path | None = None
    tag: str | None = None

    @property
    def reference(self) -> str:
        """The image's name, by default with the version of this checkout: `hls-foundry-serve:0.1.0`, `…-cuda` for CUDA."""
        suffix = "" if self.accelerator == "cpu" else f"-{self.accelerator}"
        return self.tag or f"hls-foundry-{self.name}:{version()}{suffix}"


def version() -> str:
    """The version of this checkout."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def build_command(engine: Engine, order: Order) -> list[str]:
    """The engine's command. Raises ImageError where it cannot build."""
    if not engine.build:
        raise ImageError("docker has no buildx plugin, without which it builds no such file: install it (docker-buildx), or podman")
    arguments = {"BASE": order.base, "ACCELERATOR": order.accelerator, "VERSION": version(), "REVISION": revision(), "SOURCE": source()}
    command = [*engine.build, "--file", str(ROOT / "containers" / order.name / "Dockerfile"), "--tag", order.reference]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    if order.pip_conf is not None:
        if not order.pip_conf.is_file():
            raise ImageError(f"{order.pip_conf} is not a file: --pip-conf takes a pip.conf")
        command += ["--secret", f"id=pip,src={order.pip_conf.resolve()}"]
    return [*command, str(ROOT)]


def build(engine: Engine, order: Order) -> str:
    """Build, with the engine's own output on stderr; returns the image's id. Raises ImageError with one line."""
    command = build_command(engine, order)
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    environment = os.environ | dict(engine.environment)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as running:
        assert running.stdout is not None  # a pipe was asked for
        for line in running.stdout:
            sys.stderr.write(line)
            lines.append(line)
    if running.returncode:
        raise ImageError(explained("".join(lines), engine, order))
    return inspect(engine, order.reference, "{{.Id}}").removeprefix("sha256:")


def explained(output: str, engine: Engine, order: Order) -> str:
    """What to do about a build that ended with `output`, in one line."""
    for pattern, meaning in _FAILURES:
        if found := re.search(pattern, output):
            return meaning.format(*(group or "" for group in found.groups()), base=order.base, engine=engine.program)
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
    return f"{engine.program} could not build {order.reference}: {last[:300]}"


def inspect(engine: Engine, reference: str, template: str) -> str:
    """What the engine knows of an image. Raises ImageError where it has none of the name."""
    command = [engine.program, "image", "inspect", "--format", template, reference]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ImageError(f"{engine.program} has no image {reference}: build it first (make images)")
    return answer.stdout.strip()


def revision() -> str:
    """The commit that the image's files come from, `-dirty` where they differ from it; empty outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".dockerignore", *context())
    return f"{commit}-dirty" if commit and changed else commit


def context() -> list[str]:
    """What the images are made from: the paths that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def source() -> str:
    """Where the checkout came from, without a user or password; empty where it is not a clone."""
    return re.sub(r"(?<=://)[^/@]*@", "", _git("config", "--get", "remote.origin.url"))


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def known_images() -> list[str]:
    """The folders of containers/ with a recipe."""
    return sorted(path.parent.name for path in (ROOT / "containers").glob("*/Dockerfile"))


def chosen_images(names: Sequence[str]) -> list[str]:
    """`names`, with every image for "all" or none. Raises ImageError for one that there is not."""
    images = known_images()
    if unknown := [name for name in names if name not in (*images, "all")]:
        raise ImageError(f"no image {unknown[0]!r}: there are {', '.join(images)}")
    return images if not names or "all" in names else list(dict.fromkeys(names))


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line asks for; returns the exit code."""
    images = known_images()
    parser = argparse.ArgumentParser(prog="python -m containers.build", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{', '.join(images)} or all (default: all)")
    parser.add_argument("--engine", choices=ENGINES, help="none: the first that answers")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="cpu", help="the build of torch (default: cpu)")
    parser.add_argument("--base", default=BASE, help="the image to build upon (default: %(default)s)")
    parser.add_argument("--pip-conf", type=Path, metavar="FILE", help="pip.conf with an index or certificate; stays out of the image")
    parser.add_argument("--tag", help="name of the image, where one is built (default: hls-foundry-IMAGE:VERSION)")
    options = parser.parse_args(arguments)
    try:
        chosen = chosen_images(options.images)
        if options.tag and len(chosen) > 1:
            raise ImageError("--tag names one image: say which to build")
        engine = find_engine(options.engine)
        for name in chosen:
            started = time.monotonic()
            order = Order(name, options.accelerator, options.base, options.pip_conf, options.tag)
            identity = build(engine, order)
            size = int(inspect(engine, order.reference, "{{.Size}}"))
            print(
                f"{order.reference}  {identity[:12]}  {size / 1e9:.2f} GB  {time.monotonic() - started:.0f} s  {engine.program}", flush=True
            )
    except FoundryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
