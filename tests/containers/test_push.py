"""What `make push` does with a registry, with ECR's login, and with what must not be pushed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.build import ImageError, Order, inspect
from containers.push import explained, logged_in, main, tags_of
from hls_foundry.endpoints.engine import Engine, find_engine
from hls_foundry.errors import EndpointError
from stacks.images import note_pushed, pushed_images
from tests.conftest import missing
from tests.containers.test_build import PODMAN, on_path, program
from tests.serving.running import free_port

__all__ = ["on_path"]

DIGEST = f"sha256:{'4' * 64}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
DOCKER_V2 = "application/vnd.docker.distribution.manifest.v2+json"


def labelled(folder: Path, revision: str) -> None:
    """A podman whose images have that revision."""
    program(folder, "podman", f'[ "$1" = image ] && echo "{revision}"; exit 0')


def test_an_image_has_the_tags_of_its_version_and_commit(on_path: Path) -> None:
    labelled(on_path, COMMIT)
    assert tags_of(PODMAN, Order("serve", tag="hls-foundry-serve:0.1.0"), dirty=False) == ["0.1.0", "0123456789ab"]
    assert tags_of(PODMAN, Order("train", "cuda", tag="hls-foundry-train:0.1.0-cuda"), dirty=False) == ["0.1.0-cuda", "0123456789ab-cuda"]


def test_an_image_of_uncommitted_code_is_pushed_only_if_asked_for_and_never_as_the_version(on_path: Path) -> None:
    labelled(on_path, f"{COMMIT}-dirty")
    order = Order("serve", tag="hls-foundry-serve:0.1.0")
    with pytest.raises(ImageError, match="holds changes that no commit has: commit them and build again"):
        tags_of(PODMAN, order, dirty=False)
    assert tags_of(PODMAN, order, dirty=True) == ["0123456789ab-dirty"]


def test_the_token_of_ecr_goes_in_by_standard_input_and_is_forgotten(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    log, secret = on_path / "log", on_path / "secret"
    program(on_path, "podman", f'echo "$@" >> {log}; [ "$1" = login ] && {{ read -r line; echo "$line" > {secret}; }}; exit 0')
    with mock_aws():
        import boto3

        data = boto3.client("ecr", region_name="eu-central-1").get_authorization_token()["authorizationData"][0]
        token = base64.b64decode(data["authorizationToken"]).decode().partition(":")[2]
        with logged_in(PODMAN, ECR):
            pass
    assert secret.read_text().strip() == token
    assert log.read_text().splitlines() == [f"login --username AWS --password-stdin {ECR}", f"logout {ECR}"]


def test_without_credentials_of_aws_it_says_how_to_get_some(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(on_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(EndpointError, match="aws sso login"), logged_in(PODMAN, ECR):
        pass


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "name unknown: The repository with name 'hls-foundry-serve' does not exist",
            "aws ecr create-repository --repository-name hls-foundry",
        ),
        (
            "The image tag '0.1.0' already exists and cannot be overwritten because the tag is immutable",
            "raise the version in pyproject.toml",
        ),
        ("unauthorized: authentication required", "you need ecr:PutImage"),
        ("dial tcp: lookup nowhere.invalid: no such host", "does not answer: look at its name"),
        ("first\nsomething else", "could not push hls-foundry-serve:1 to .*: something else"),
    ],
)
def test_a_failed_push_is_explained_in_one_line(said: str, expected: str) -> None:
    line = explained(said, "podman", Order("serve", tag="hls-foundry-serve:1"), f"{ECR}/hls-foundry-serve:0.1.0")
    with pytest.raises(ImageError, match=expected):
        raise ImageError(line)
    assert "\n" not in line


def test_a_registry_is_named_without_its_scheme(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["https://example.com"]) == 2
    assert "is no registry: give HOST[/FOLDER] without https://" in capsys.readouterr().err


def test_what_was_pushed_last_is_what_the_stacks_use(tmp_path: Path) -> None:
    assert pushed_images(tmp_path) == {}
    note_pushed(tmp_path, "serve", f"{ECR}/hls-foundry-serve@sha256:{'3' * 64}")
    note_pushed(tmp_path, "train", f"{ECR}/hls-foundry-train@{DIGEST}")
    note_pushed(tmp_path, "serve", f"{ECR}/hls-foundry-serve@{DIGEST}")
    assert pushed_images(tmp_path) == {
        "HLS_AWS_IMAGE": f"{ECR}/hls-foundry-serve@{DIGEST}",
        "HLS_AWS_TRAIN_IMAGE": f"{ECR}/hls-foundry-train@{DIGEST}",
    }


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry on 127.0.0.1 that podman may speak plain HTTP to."""
    if shutil.which("docker-registry") is None:
        missing("docker-registry is not installed")
    host = f"127.0.0.1:{free_port()}"
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}}, "http": {"addr": host}}
    (tmp_path / "config.yml").write_text(json.dumps(settings))
    insecure = tmp_path / "registries.conf"
    insecure.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(insecure))
    log = (tmp_path / "registry.log").open("w")
    with log, subprocess.Popen(["docker-registry", "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log) as running:
        deadline = time.monotonic() + 30
        while not answers(host):
            assert time.monotonic() < deadline, (tmp_path / "registry.log").read_text()
            time.sleep(0.05)
        yield host
        running.terminate()


def answers(host: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://{host}/v2/", timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[tuple[Engine, Order]]:
    """An image of one file, labelled as ours are."""
    try:
        engine = find_engine()
    except EndpointError as error:
        missing(str(error))
    order = Order("serve", tag=f"hls-foundry-serve:push-{os.getpid()}")
    (tmp_path / "image").mkdir()
    (tmp_path / "image/Dockerfile").write_text(f"FROM scratch\nCOPY Dockerfile /\nLABEL org.opencontainers.image.revision={COMMIT}\n")
    build = [*engine.build, "--quiet", "--tag", order.reference, str(tmp_path / "image")]
    done = subprocess.run(build, capture_output=True, text=True, check=False, env=os.environ | dict(engine.environment))
    if done.returncode:
        missing(done.stderr)
    yield engine, order
    subprocess.run([engine.program, "rmi", "--force", order.reference], capture_output=True, check=False)


@pytest.mark.image
def test_it_pushes_in_dockers_format_and_writes_the_digest_down(
    registry: str, tiny: tuple[Engine, Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, order = tiny
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("containers.push.Order", lambda name, accelerator: order)
    assert main([f"{registry}/team", "serve"]) == 0, capsys.readouterr().err
    image = pushed_images(tmp_path / "home")["HLS_AWS_IMAGE"]
    name, _, digest = image.partition("@")
    assert name == f"{registry}/team/hls-foundry-serve"
    for reference in (digest, f"push-{os.getpid()}", COMMIT[:12]):
        asked = urllib.request.Request(f"http://{registry}/v2/team/hls-foundry-serve/manifests/{reference}", headers={"Accept": DOCKER_V2})
        with urllib.request.urlopen(asked, timeout=10) as reply:
            assert reply.headers["Content-Type"] == DOCKER_V2
            assert reply.headers["Docker-Content-Digest"] == digest
    with pytest.raises(ImageError):
        inspect(engine, f"{name}:{COMMIT[:12]}", "{{.Id}}")  # names for the push are gone afterwards


@pytest.mark.image
def test_a_registry_that_does_not_answer_is_said_in_one_line(
    tiny: tuple[Engine, Order], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("containers.push.Order", lambda name, accelerator: tiny[1])
    assert main([f"127.0.0.1:{free_port()}", "serve"]) == 2
    assert "does not answer: look at its name and the network" in capsys.readouterr().err
