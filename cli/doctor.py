"""Check what a stack needs before anything is started, and say what to do about what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import psutil

from hls_foundry.errors import FoundryError
from hls_foundry.home import REPOSITORY, foundry_home

FREE_GIB, MEMORY_GIB = 5, 3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `remedy` says what to do when it is not right."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


def check_stack(stack: str, task: str | None, configs: Path) -> list[Check]:
    """All checks of `stack` with the configuration of `task`, cheap ones first."""
    return [_python(), _packages(), _memory(), _disk(), _configuration(task, configs), _stack(stack), _zenml(stack), _accelerator()]


def print_checks(checks: list[Check]) -> bool:
    """Print one line a check; True when all passed."""
    for check in checks:
        mark = click.style("ok  ", fg="green") if check.passed else click.style("FAIL", fg="red")
        click.echo(f"{mark} {check.name:<14} {check.found}" + ("" if check.passed else f": {check.remedy}"))
    return all(check.passed for check in checks)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 11), version, "HLS Foundry runs on Python 3.11: make install PYTHON=python3.11")


def _packages() -> Check:
    wrong = []
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, pinned, version = line.partition("==")
        if not pinned or line.startswith(("#", " ")):
            continue
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed.split("+")[0] != version.split(" ")[0]:
            wrong.append(f"{name} {installed} instead of {version}")
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


def _configuration(task: str | None, configs: Path) -> Check:
    from hls_foundry.config import load_config

    try:
        config = load_config(configs, task=task)
    except FoundryError as error:
        return Check("configuration", False, "not usable", str(error))
    return Check("configuration", True, f"task {config.task.name}, {config.model.variant}, chips from {config.data.source}")


def _stack(stack: str) -> Check:
    from stacks.definition import load_stack

    try:
        definition = load_stack(stack, os.environ)
    except FoundryError as error:
        return Check("stack", False, "not usable", str(error))
    return Check("stack", True, f"{definition.file.relative_to(REPOSITORY)}, publishes to {definition.publish.folder}")


def _zenml(stack: str) -> Check:
    from cli.session import start_zenml
    from stacks.definition import load_stack

    start_zenml()
    from zenml.client import Client
    from zenml.stack import Stack

    from stacks.registry import register_stack

    try:
        Stack.from_model(register_stack(load_stack(stack, os.environ))).validate()
        return Check("zenml", True, f"{metadata.version('zenml')}, store {Client().zen_store.url}, stack hls-{stack} registered")
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
