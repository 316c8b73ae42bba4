"""Check what a stack needs before anything is started, and say what to do about what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from cli.packages import differences
from hls_foundry.errors import FoundryError
from hls_foundry.home import REPOSITORY, foundry_home
from stacks.aws.managed import on_sagemaker

if TYPE_CHECKING:
    from stacks.definition import StackDefinition

FREE_GIB, MEMORY_GIB = 5, 3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `remedy` says what to do when it is not right."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


def check_stack(
    stack: str, task: str | None, configs: Path, *, site: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """All checks of `stack` (on `site`) with the configuration of `task`, cheap ones first, each as soon as it is known.

    `environment` fills the stack file's variables; None is this process's.
    """
    yield from (_python(), _packages(), _memory(), _disk())
    definition, check = _stack(stack, site, os.environ if environment is None else environment)
    yield _configuration(task, configs, definition)
    yield check
    if definition is not None:
        yield _zenml(definition)
    yield _accelerator()
    if definition is not None and any(part.flavor == "slurm" for part in definition.components):
        from cli.doctor_hpc import check_cluster

        for finding in check_cluster(definition, lambda line: click.echo(f"     {line}", err=True)):
            yield Check(finding.name, finding.passed, finding.found, finding.remedy)
    if definition is not None and definition.endpoint and definition.endpoint.target == "container":
        from cli.doctor_container import check_container

        yield from check_container(definition.endpoint)
    if definition is not None and (definition.publish.bucket or (definition.endpoint and definition.endpoint.target == "sagemaker")):
        from cli.doctor_aws import check_account

        yield from check_account(definition)
    if definition is not None and on_sagemaker(definition):
        from cli.doctor_managed import check_managed

        yield from check_managed(definition)


def print_checks(checks: Iterable[Check]) -> bool:
    """Print one line a check as they come; True when all passed."""
    passed = True
    for check in checks:
        passed = passed and check.passed
        mark = click.style("ok  ", fg="green") if check.passed else click.style("FAIL", fg="red")
        click.echo(f"{mark} {check.name:<14} {check.found}" + ("" if check.passed else f": {check.remedy}"))
    return passed


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 11), version, "HLS Foundry runs on Python 3.11: make install PYTHON=python3.11")


def _packages() -> Check:
    wrong = differences()
    found = f"{len(wrong)} differ from requirements.lock ({', '.join(wrong[:3])})" if wrong else "as in requirements.lock"
    return Check("packages", not wrong, found, "make install")


def _memory() -> Check:
    free = psutil.virtual_memory().available / 2**30
    return Check("memory", free >= MEMORY_GIB, f"{free:.1f} GiB free", f"the demo needs {MEMORY_GIB} GiB: close other programs")


def _disk() -> Check:
    folder = foundry_home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    remedy = f"free some space (at least {FREE_GIB} GiB)" if writable else "it cannot be written: set HLS_FOUNDRY_HOME to a folder of yours"
    return Check("home", writable and free >= FREE_GIB, f"{foundry_home()}, {free:.0f} GiB free", remedy)


def _configuration(task: str | None, configs: Path, definition: StackDefinition | None) -> Check:
    from hls_foundry.config import load_config

    try:
        config = load_config(configs, task=task, overrides=() if definition is None else definition.config_overrides())
    except FoundryError as error:
        return Check("configuration", False, "not usable", str(error))
    return Check("configuration", True, f"task {config.task.name}, {config.model.variant}, chips from {config.data.source}")


def _stack(stack: str, site: str | None, environment: Mapping[str, str]) -> tuple[StackDefinition | None, Check]:
    from stacks.definition import load_stack

    try:
        definition = load_stack(stack, environment, site=site)
    except FoundryError as error:
        return None, Check("stack", False, "not usable", str(error))
    files = " and ".join(str(file.relative_to(REPOSITORY)) for file in (definition.file, definition.site_file) if file is not None)
    return definition, Check("stack", True, f"{files}, publishes to {definition.publish.place}")


def _zenml(definition: StackDefinition) -> Check:
    from cli.session import start_zenml

    try:
        start_zenml()
        from zenml.client import Client
        from zenml.stack import Stack

        from stacks.registry import register_stack, stack_name

        Stack.from_model(register_stack(definition)).validate()
        found = f"{metadata.version('zenml')}, store {Client().zen_store.url}, stack {stack_name(definition)} registered"
        return Check("zenml", True, found)
    except FoundryError as error:
        return Check("zenml", False, "not registered", str(error))
    except Exception as error:  # whatever ZenML or its store says is the finding
        return Check(
            "zenml", False, " ".join(str(error).split())[:200], "check ZENML_CONFIG_PATH and ZENML_STORE_URL, or move the store away"
        )


def _accelerator() -> Check:
    import torch

    from hls_foundry.training.precision import choose_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Check(
        "compute",
        True,
        f"{device}, {torch.get_num_threads()} threads, {choose_precision('auto', torch.device(device))} (torch {torch.__version__})",
    )
