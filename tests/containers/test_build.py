"""What `make images` says and runs, with engines that are missing, refuse, or fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from containers.build import ROOT, ImageError, Order, build_command, explained
from hls_foundry.endpoints.engine import Engine, find_engine
from hls_foundry.errors import EndpointError

PODMAN = Engine("podman", ("podman", "build", "--format", "docker"))


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_without_an_engine_it_says_what_to_install(on_path: Path) -> None:
    with pytest.raises(EndpointError, match="neither docker nor podman is on the PATH: install"):
        find_engine()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("permission denied while trying to connect to the Docker daemon socket", "may not be used by this user"),
        ("Cannot connect to the Docker daemon. Is the docker daemon running?", "not running"),
        ("first line\nan unknown failure", "docker says: an unknown failure"),
    ],
)
def test_an_engine_that_refuses_is_explained_in_one_line(on_path: Path, said: str, expected: str) -> None:
    program(on_path, "docker", f"echo '{said}' >&2; exit 1")
    with pytest.raises(EndpointError, match=expected) as caught:
        find_engine()
    assert "\n" not in str(caught.value)


def test_the_engine_that_answers_is_taken(on_path: Path) -> None:
    program(on_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    program(on_path, "podman", "exit 0")
    assert find_engine() == PODMAN


def test_docker_builds_no_index_of_manifests_which_sagemaker_refuses(on_path: Path) -> None:
    program(on_path, "docker", "exit 0")
    assert find_engine().build == ("docker", "buildx", "build", "--provenance=false", "--output", "type=docker")


def test_an_old_docker_builds_without_the_plugin(on_path: Path) -> None:
    program(on_path, "docker", '[ "$1" = buildx ] && exit 1; [ "$1" = version ] && echo 20.10.24; exit 0')
    engine = find_engine()
    assert (engine.build, engine.environment) == (("docker", "build"), (("DOCKER_BUILDKIT", "1"),))


def test_a_new_docker_without_the_plugin_is_told(on_path: Path) -> None:
    program(on_path, "docker", '[ "$1" = buildx ] && exit 1; [ "$1" = version ] && echo 28.2.2; exit 0')
    with pytest.raises(ImageError, match="buildx plugin"):
        build_command(find_engine(), Order("serve"))


def test_a_pip_conf_goes_in_as_a_secret_only(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text("[global]\nindex-url = https://user:hidden@example.com/simple\n")
    command = build_command(PODMAN, Order("serve", pip_conf=conf))
    assert f"id=pip,src={conf}" in command
    assert "hidden" not in " ".join(command)
    with pytest.raises(ImageError, match="is not a file"):
        build_command(PODMAN, Order("serve", pip_conf=tmp_path / "none"))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Error: initializing source docker://python:3: pinging container registry x: no such host", "base image .* cannot be fetched"),
        ("ERROR: failed to solve: python:3: failed to resolve source metadata for docker.io/library/python:3", "base image .* cannot be"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", r"pip finds no torch==2\.13\.0\+cpu"),
        ("ERROR: No matching distribution found for affine==3.0.1", "cannot fetch packages inside the build"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "not the one in the lock"),
        ("write /x: no space left on device", "no space left"),
        ("exec /bin/sh: exec format error", "another architecture"),
        ("one\nsomething else\n", "could not build .*: something else"),
    ],
)
def test_a_failed_build_is_explained_in_one_line(output: str, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        raise ImageError(explained(output, PODMAN, Order("serve")))
    assert "\n" not in explained(output, PODMAN, Order("serve"))


def test_the_command_ends_with_2_and_one_line_where_the_base_cannot_be_fetched(on_path: Path) -> None:
    program(on_path, "podman", '[ "$1" = info ] && exit 0; echo "pinging container registry: no such host" >&2; exit 125')
    command = [sys.executable, "-m", "containers.build", "serve", "--base", "nowhere.invalid/python:3.11"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": str(on_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the base image nowhere.invalid/python:3.11 cannot be fetched")
    assert "Traceback" not in done.stderr


def test_an_unknown_image_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from containers.build import main

    assert main(["nope"]) == 2
    assert "no image 'nope': there are" in capsys.readouterr().err
