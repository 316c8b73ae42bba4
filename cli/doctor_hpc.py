"""The checks of `run.py doctor` for a stack on Slurm: the commands, the cluster, what is asked of it, the store, and a compute node."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.packages import locked_packages
from hls_foundry.errors import FoundryError
from hls_foundry.home import foundry_home
from stacks.slurm.findings import Finding

if TYPE_CHECKING:
    from stacks.definition import StackDefinition
    from stacks.slurm.image import Image
    from stacks.slurm.preflight import Request
    from stacks.slurm.settings import ContainerSettings
    from stacks.slurm.transport import Transport

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
PATIENCE_S = 15.0
"""How long a cluster that does not answer is asked again."""


def check_cluster(definition: StackDefinition, say: Callable[[str], None], patience_s: float = 120.0) -> Iterator[Finding]:
    """All checks, cheap ones first; those that need an answer of the cluster are left out where it gives none.

    `say` gets a line while the probe job is waited for, which is at most `patience_s` in the queue.
    """
    from stacks.slurm.client import Slurm
    from stacks.slurm.requests import OTHER_STEPS, cluster_configuration, slurm_requests

    try:
        config, requests = cluster_configuration(definition), slurm_requests(definition)
        transport = _transport(config)
    except FoundryError as error:
        yield Finding("settings", False, "not usable", str(error))
        return
    site = f"site {definition.site}, " if definition.site else ""
    yield Finding("settings", True, site + "; ".join(_words(request) for request in requests.values()))
    images: dict[str, Image] = {}
    for container in {request.settings.container.model_dump_json(): request.settings.container for request in requests.values()}.values():
        if container.active:
            yield _try("container", lambda: _container(container, transport, images))  # noqa: B023 (called at once)
    yield from _store(config.login)
    folder = _folder(config, transport)
    yield folder
    commands = _commands(transport)
    yield commands
    slurm = Slurm(transport, patience_s=PATIENCE_S)
    if not commands.passed or not (cluster := _try("cluster", lambda: _cluster(slurm))).passed:
        if commands.passed:
            yield cluster
        return
    yield cluster
    asked = _try("limits", lambda: _limits(slurm, requests))
    yield asked
    if asked.passed and folder.passed:
        request = requests[OTHER_STEPS]
        yield from _probe(slurm, config, request, images.get(str(request.settings.container.image)), (say, patience_s))


def _transport(config: Any) -> Transport:
    from stacks.slurm.transport import LocalTransport, SSHTransport

    environment = {"SLURM_CONF": config.slurm_conf} if config.slurm_conf else {}
    if config.login:
        return SSHTransport(config.login, options=config.ssh_options, environment=environment)
    return LocalTransport(environment)


def _words(request: Request) -> str:
    settings, resources = request.settings, request.resources
    size = f"{settings.nodes} node{'s' if settings.nodes > 1 else ''}"
    each = [f"{resources.cpus:g} CPUs" if resources.cpus else "", f"{resources.gpus} GPUs" if resources.gpus else "", settings.gres or ""]
    each += [f"{resources.memory_mib} MiB" if resources.memory_mib else ""]
    place = f" of {settings.partition}" if settings.partition else ""
    return f"{request.step}: {size}{place} ({', '.join(filter(None, each))}), {settings.time or 'no limit'}"


def _try(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding, or the error as one: its line says what is wrong, and after the last colon what to do."""
    try:
        return check()
    except FoundryError as error:
        found, _, remedy = str(error).rpartition(": ")
        return Finding(name, False, found, remedy)


def _commands(transport: Transport) -> Finding:
    script = 'for name; do command -v "$name" > /dev/null || echo "$name"; done'

    def look() -> Finding:
        lacking = transport.run(["sh", "-c", script, "sh", *COMMANDS, "sacct"], timeout=60).stdout.split()
        missing = [name for name in COMMANDS if name in lacking]
        if missing:
            remedy = "go to a login node, perhaps `module load slurm`; without a cluster: python run.py cluster up"
            return Finding("commands", False, f"no {', '.join(missing)} on the PATH of {transport.where}", remedy)
        version = transport.run(["sbatch", "--version"], timeout=60).stdout.strip()
        return Finding("commands", True, f"{version} on {transport.where}" + (", without sacct" if "sacct" in lacking else ""))

    return _try("commands", look)


def _container(container: ContainerSettings, transport: Transport, images: dict[str, Image]) -> Finding:
    """The runtime and the image, seen from the login node; where only compute nodes have them, the probe job sees them."""
    from stacks.slurm.container import PROGRAMS
    from stacks.slurm.image import inspect_image, inspect_remote
    from stacks.slurm.transport import LocalTransport

    words = container.command or [PROGRAMS[container.runtime]]
    said = transport.run(["sh", "-c", 'command -v "$1" > /dev/null && "$@" --version 2>&1', "sh", *words], timeout=60)
    version = said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else f"no {words[0]} here (jobs need it)"
    here = isinstance(transport, LocalTransport)
    image = images[str(container.image)] = inspect_image(container) if here else inspect_remote(container, transport)
    size = f", {image.size / 1e6:.0f} MB" if image.size else ""
    digest = f", {image.digest[:19]}…" if image.digest else ", without a digest that would name it in the lineage"
    machine = f" for {image.machine}" if image.machine else ""
    found = f"{container.runtime}: {version}; {container.image} is a {image.kind}{size}{machine}{digest}"
    return Finding("container", image.fits, found, "build the image on a machine like the compute nodes")


def _cluster(slurm: Any) -> Finding:
    from stacks.slurm.preflight import GONE

    partitions, nodes = slurm.partitions(), slurm.nodes()
    usable = [node for node in nodes if not node.state.startswith(GONE)]
    accounting = "no accounting, so costs come from the jobs themselves" if slurm.accounts() is None else "accounting"
    names = ", ".join(f"{partition.name}{'' if partition.up else ' (down)'}" for partition in partitions)
    found = f"answers: {len(usable)} of {len(nodes)} nodes usable, partitions {names}; {accounting}"
    return Finding("cluster", bool(usable), found, "no node is usable: see sinfo -R for the reasons, and ask the site")


def _limits(slurm: Any, requests: dict[str, Request]) -> Finding:
    from stacks.slurm.preflight import check_requests

    check_requests(slurm, requests)
    return Finding("limits", True, "what the steps ask for is within what the partitions have")


def _folder(config: Any, transport: Transport) -> Finding:
    from stacks.slurm.preflight import check_folder

    def look() -> Finding:
        if config.login:
            transport.write(f"{config.folder}/.hls-doctor", b"")
            transport.remove(f"{config.folder}/.hls-doctor")
            return Finding("run folder", True, f"{config.folder} on {config.login} can be written")
        check_folder(Path(config.folder))
        there = next(path for path in (Path(config.folder), *Path(config.folder).parents) if path.exists())
        return Finding("run folder", True, f"{config.folder} can be written, {shutil.disk_usage(there).free / 2**30:.0f} GiB free")

    return _try("run folder", look)


def _store(login: str | None) -> Iterator[Finding]:
    from stacks.slurm.store import check_store

    url, folder = store_url()
    if login and url.startswith("sqlite:"):
        remedy = "set ZENML_STORE_URL and ZENML_STORE_API_KEY of a ZenML server"
        yield Finding("store", False, f"a SQLite file of this machine, while the jobs run where {login} is", remedy)
        return
    yield from check_store(url, folder, os.environ.get("ZENML_STORE_API_KEY", ""))


def store_url() -> tuple[str, Path]:
    """(the URL of the store that ZenML uses, its configuration folder), from its configuration, without opening the store."""
    from zenml.config.global_config import GlobalConfiguration

    configuration = GlobalConfiguration()
    return configuration.store_configuration.url, Path(configuration.config_directory)


def _probe(
    slurm: Any, config: Any, request: Request, image: Image | None, waiting: tuple[Callable[[str], None], float]
) -> Iterator[Finding]:
    from stacks.slurm.probe import Expectation, Probe

    expected = Expectation(
        packages=locked_packages(),
        store=store_url()[0],
        home=str(foundry_home()) if not config.login and foundry_home().exists() else "",
        python=config.python or sys.executable,
    )
    say, patience_s = waiting
    probe = Probe(slurm, config.folder, request.settings, request.resources, expected, image, patience_s=patience_s, say=say)
    try:
        yield from probe.run()
    except FoundryError as error:
        found, _, remedy = str(error).rpartition(": ")
        yield Finding("probe job", False, found, remedy)
