"""Pushes the images to a registry, ECR or any other: `make push REGISTRY=HOST[/FOLDER]`, after `make images`."""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from containers.build import ImageError, Order, chosen_images, inspect
from hls_foundry.endpoints.engine import ENGINES, Engine, find_engine
from hls_foundry.errors import FoundryError
from hls_foundry.home import foundry_home
from stacks.images import note_pushed

ECR = re.compile(r"[0-9]{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")
REGISTRY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REVISION = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
DIRTY = "-dirty"

# What a refused push says, and what to do about it. The first that is found counts.
_FAILURES = (
    (r"(?i)repository .*does not exist|name unknown", "the registry has no repository {repository}: {make}"),
    (
        r"(?i)tag.*immutable|ImageTagAlreadyExists",
        "{image} is there already and its tag may not change: raise the version in pyproject.toml",
    ),
    (r"(?i)no basic auth|unauthorized|authentication required|denied|forbidden", "{host} refuses the push: {login}"),
    (r"(?i)no such host|connection refused|i/o timeout|dial tcp|no route", "{host} does not answer: look at its name and the network"),
    (
        r"(?i)server gave HTTP response to HTTPS",
        "{host} speaks no TLS: push to one that does, or add it to the engine's insecure registries",
    ),
)


def tags_of(engine: Engine, order: Order, *, dirty: bool) -> list[str]:
    """The version and the twelve digits of the commit that the image was made from; of a changed tree only the latter, and if `dirty`.

    Raises ImageError for an image of a changed tree.
    """
    revision = inspect(engine, order.reference, REVISION)
    suffix = "" if order.accelerator == "cpu" else f"-{order.accelerator}"
    version = order.reference.rpartition(":")[2]
    if revision.endswith(DIRTY):
        if not dirty:
            raise ImageError(f"{order.reference} holds changes that no commit has: commit them and build again (make images), or --dirty")
        return [f"{revision[:12]}{DIRTY}{suffix}"]
    return [version, f"{revision[:12]}{suffix}"] if revision else [version]


def push(engine: Engine, order: Order, registry: str, tags: list[str]) -> str:
    """Push under each of `tags`, in Docker's own format; returns the image with its digest. Raises ImageError with one line."""
    repository = f"{registry}/hls-foundry-{order.name}"
    digests = {_push_one(engine, order, f"{repository}:{tag}") for tag in tags}
    if len(digests) != 1:
        raise ImageError(f"{repository} gave {len(digests)} digests for one image: push it again")
    return f"{repository}@{digests.pop()}"


def _push_one(engine: Engine, order: Order, target: str) -> str:
    _run([engine.program, "tag", order.reference, target], order, target)
    try:
        if engine.is_podman:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "digest")
                # SageMaker takes no OCI manifests.
                _run(["podman", "push", "--quiet", "--format", "v2s2", "--digestfile", str(file), target], order, target)
                told = file.read_text(encoding="utf-8")
        else:
            told = _run([engine.program, "push", target], order, target)
    finally:
        subprocess.run([engine.program, "rmi", "--no-prune", target], capture_output=True, check=False)
    found = DIGEST.findall(told)
    if not found:
        raise ImageError(f"{engine.program} pushed {target} and told no digest: update it, or push with podman (--engine podman)")
    return str(found[-1])


def _run(command: list[str], order: Order, target: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(explained(done.stderr.strip() or done.stdout.strip(), command[0], order, target))
    return done.stdout


def explained(said: str, program: str, order: Order, target: str) -> str:
    """What to do about a push to `target` that ended with `said`, in one line."""
    host, _, path = target.partition("/")
    repository = path.rpartition(":")[0]
    ecr = ECR.fullmatch(host)
    make = f"`aws ecr create-repository --repository-name {repository} --region {ecr[1]}`" if ecr else "make it there first"
    login = f"you need ecr:PutImage and ecr:InitiateLayerUpload on {repository}" if ecr else f"`{program} login {host}` first"
    for pattern, meaning in _FAILURES:
        if re.search(pattern, said):
            return meaning.format(host=host, repository=repository, image=target, make=make, login=login)
    return f"{program} could not push {order.reference} to {host}: {(said or 'no output').splitlines()[-1][:300]}"


@contextmanager
def logged_in(engine: Engine, host: str) -> Iterator[None]:
    """Within, the engine may push to `host` where it is ECR, by the usual chain of AWS credentials; other registries know their users.

    The token goes in by standard input and is forgotten afterwards. Raises EndpointError for credentials, ImageError for the login.
    """
    ecr = ECR.fullmatch(host)
    if ecr is None:
        yield
        return
    token = ecr_token(ecr[1])
    command = [engine.program, "login", "--username", "AWS", "--password-stdin", host]
    done = subprocess.run(command, input=token, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{engine.program} cannot log in to {host}: {(done.stderr.strip() or 'no reason given').splitlines()[-1][:200]}")
    try:
        yield
    finally:
        subprocess.run([engine.program, "logout", host], capture_output=True, check=False)


def ecr_token(region: str) -> str:
    """A password for the registry of our account in `region`, good for twelve hours. Raises EndpointError."""
    from hls_foundry.endpoints.aws import Aws, aws_errors
    from hls_foundry.endpoints.settings import AwsSettings

    with aws_errors("ECR"):
        answer = Aws(AwsSettings(region=region)).client("ecr").get_authorization_token()
    return base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode().partition(":")[2]


def main(arguments: list[str] | None = None) -> int:
    """Push what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m containers.push", description=__doc__)
    parser.add_argument("registry", help="HOST[/FOLDER], such as ACCOUNT.dkr.ecr.REGION.amazonaws.com")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="serve, train or all (default: all)")
    parser.add_argument("--engine", choices=ENGINES, help="none: the first that answers")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu", help="which build of the images (default: cpu)")
    parser.add_argument("--dirty", action="store_true", help="push an image of uncommitted code too, under its commit and -dirty only")
    options = parser.parse_args(arguments)
    try:
        registry = options.registry.rstrip("/")
        if not REGISTRY.fullmatch(registry):
            raise ImageError(f"{options.registry!r} is no registry: give HOST[/FOLDER] without https:// and in small letters")
        engine = find_engine(options.engine)
        orders = [Order(name, options.accelerator) for name in chosen_images(options.images)]
        tagged = [(order, tags_of(engine, order, dirty=options.dirty)) for order in orders]
        with logged_in(engine, registry.partition("/")[0]):
            for order, tags in tagged:
                image = push(engine, order, registry, tags)
                file = note_pushed(foundry_home(), order.name, image)
                print(
                    f"{image}  {' '.join(tags)}  {inspect(engine, order.reference, '{{.Architecture}}')}  → {os.path.relpath(file)}",
                    flush=True,
                )
    except FoundryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
