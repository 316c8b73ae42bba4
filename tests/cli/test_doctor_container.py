"""run.py doctor and a deployment for an endpoint in a container, with engines that are missing, refuse, or have another image."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cli.doctor import Check
from cli.doctor_container import check_container
from hls_foundry import __version__
from hls_foundry.endpoints.container import ARCHITECTURES, ServerContainer, container_spec
from hls_foundry.endpoints.settings import ContainerSettings
from hls_foundry.errors import EndpointError
from stacks.definition import load_stack

HERE = ARCHITECTURES.get(platform.machine(), platform.machine())


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that is the whole PATH: a script which answers as the engine's client does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "docker"


def answers(docker: Path, script: str) -> None:
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)


def checks() -> dict[str, Check]:
    return {check.name: check for check in check_container(ContainerSettings())}


def with_image(docker: Path, *, version: str = __version__, architecture: str = HERE) -> None:
    answers(docker, f'case "$*" in *Labels*) echo {version};; *Architecture*) echo sha256:{"4" * 64} {architecture};; esac')


def test_an_engine_and_the_image_of_this_version_are_all_it_takes(docker: Path) -> None:
    with_image(docker)
    assert all(check.passed for check in checks().values())
    assert checks()["image"].found == f"hls-foundry-serve:{__version__}, sha256:444444444444, version {__version__}"


def test_no_engine(docker: Path) -> None:
    assert list(checks()) == ["engine"]
    assert "install podman or docker" in checks()["engine"].remedy
    with pytest.raises(EndpointError, match="install podman or docker"):
        container_spec(ContainerSettings(), docker.parent)


def test_an_engine_that_this_user_may_not_use(docker: Path) -> None:
    answers(docker, "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1")
    assert "may not be used by this user" in checks()["engine"].remedy
    with pytest.raises(EndpointError, match="may not be used by this user"):
        container_spec(ContainerSettings(engine="docker"), docker.parent)


def test_an_image_that_was_not_built(docker: Path) -> None:
    answers(docker, '[ "$1" = info ] && exit 0; echo "Error: No such image: x" >&2; exit 1')
    assert "build it (make images)" in checks()["image"].remedy


def test_an_image_of_another_version_or_processor(docker: Path) -> None:
    with_image(docker, version="9.9.9")
    assert not checks()["image"].passed
    assert f"this checkout is version {__version__}" in checks()["image"].remedy
    with_image(docker, architecture="s390x")
    assert f"is for s390x, this machine is {HERE}" in checks()["image"].remedy


def test_why_a_container_is_gone_is_said_by_the_engine(docker: Path) -> None:
    server = ServerContainer("docker", "hls-x", "x.shared", "/nowhere/x.log", 512)
    for script, expected in (
        ("echo false true 137", "out of memory: memory_mb is 512"),
        ("echo false false 137", "killed, perhaps for want of memory: memory_mb is 512"),
        ("echo false false 2", ""),
        ("echo 'Error: No such container: hls-x' >&2; exit 1", "its container was removed"),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "docker is installed but not running"),
    ):
        answers(docker, script)
        assert server.ending().startswith(expected)
        assert bool(server.ending()) == bool(expected)


def test_the_local_stack_takes_a_container_from_the_environment() -> None:
    chosen = load_stack("local", {"HLS_LOCAL_TARGET": "container", "HLS_LOCAL_IMAGE": "mine:1"}).endpoint
    assert chosen == ContainerSettings(image="mine:1", name="{task}")
    default = load_stack("local", {}).endpoint
    assert default is not None
    assert default.target == "local"
