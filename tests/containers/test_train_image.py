"""The training image, built and run for real: any user, nothing to write to but /tmp, no network. `make test-images` runs these."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from containers.build import Order, build, inspect, version
from hls_foundry.endpoints.engine import Engine
from tests.containers.running import built

SIZE = 2.5e9
FROZEN = "/tmp/frozen"

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]  # the first build fetches torch


@dataclass(frozen=True)
class TrainImage:
    """The image under test."""

    engine: Engine
    name: str

    def tells(self, template: str) -> str:
        return inspect(self.engine, self.name, template)

    def run(self, *command: str, user: str = "4711:4711") -> str:
        """What `command` prints in a container that has no network and no rights; by default as a user that the image does not know."""
        confined = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none", "--security-opt", "no-new-privileges")
        start = [self.engine.program, "run", "--rm", *confined, "--user", user, self.name, *command]
        done = subprocess.run(start, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[TrainImage]:
    with built("train") as (engine, name):
        yield TrainImage(engine, name)


def test_the_image_is_unprivileged_and_says_what_it_is(image: TrainImage) -> None:
    assert int(image.tells("{{.Size}}")) < SIZE
    config = json.loads(image.tells("{{json .Config}}"))
    assert config["User"] not in ("", "0", "root")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "hls-foundry-train"
    assert labels["org.opencontainers.image.version"] == version()
    assert {"org.opencontainers.image.source", "org.opencontainers.image.revision"} <= labels.keys()


def test_a_user_without_a_name_can_run_the_command_line(image: TrainImage) -> None:
    told = image.run("python", "run.py", "doctor")
    assert "packages       as in requirements.lock" in told
    assert "FAIL" not in told


def test_the_code_says_which_revision_it_is(image: TrainImage) -> None:
    look = "from hls_foundry import __version__ as v; from hls_foundry.training.fine_tune import code_version as c; print(v, c())"
    revision = image.tells('{{index .Config.Labels "org.opencontainers.image.revision"}}')
    told = image.run("python", "-c", look, user="10001:10001")
    assert told == f"{version()} {revision[:12]}{'+changes' if revision.endswith('-dirty') else ''}"


def test_code_that_a_job_brings_along_comes_before_the_images_own(image: TrainImage) -> None:
    brought = f"mkdir -p {FROZEN}/steps && echo 'print(\"brought along\")' > {FROZEN}/steps/__init__.py && cd /"
    assert image.run(
        "sh", "-c", f"{brought} && PYTHONPATH={FROZEN} python -c 'import steps, hls_foundry; print(hls_foundry.__file__)'"
    ) == ("brought along\n/app/hls_foundry/__init__.py")


def test_what_zenml_does_before_a_job_of_sagemaker_works_for_any_user(image: TrainImage) -> None:
    """Its entry point puts the run's code into /app/code; the root file system of SageMaker's jobs can be written."""
    command = [
        image.engine.program,
        "run",
        "--rm",
        "--user",
        "4711:4711",
        "--network",
        "none",
        image.name,
        "sh",
        "-c",
        "cd /app && mkdir code",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    image.run("python", "-c", "import zenml.entrypoints.entrypoint, sagemaker, s3fs; from zenml.integrations.aws import AWSIntegration")


def test_it_holds_no_installer_compiler_or_cache(image: TrainImage) -> None:
    assert image.run("python", "-c", "import importlib.util as u; print([n for n in ('pip', 'moto', 'pytest') if u.find_spec(n)])") == "[]"
    assert image.run("sh", "-c", "command -v gcc cc g++ make || true") == ""
    assert image.run("sh", "-c", "find /opt/foundry /app -name .cache -o -name '*.egg-info' -o -name '*.whl'") == ""


def test_files_have_one_time_and_are_compiled_already(image: TrainImage) -> None:
    assert image.run("sh", "-c", "find /opt/foundry /app -newermt 1980-01-02 ! -path /app -print -quit") == ""
    lacking = (
        "from pathlib import Path; folder = Path('/app'); "
        "print([str(f) for f in folder.rglob('*.py') if not list((f.parent / '__pycache__').glob(f'{f.stem}.*'))])"
    )
    assert image.run("python", "-c", lacking) == "[]"


def test_a_change_of_code_rebuilds_none_of_the_packages(image: TrainImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built again for another revision, which only the layers of our own code and what follows know of."""
    order = Order("train", tag=f"hls-foundry-train:changed-{os.getpid()}")
    monkeypatch.setattr("containers.build.revision", lambda: "0" * 40)
    try:
        build(image.engine, order)
        layers = [json.loads(inspect(image.engine, name, "{{json .RootFS.Layers}}")) for name in (image.name, order.reference)]
    finally:
        subprocess.run([image.engine.program, "rmi", "--no-prune", order.reference], capture_output=True, check=False)
    same = [one for one, other in zip(*layers, strict=True) if one == other]
    assert len(layers[0]) - len(same) == 1
