"""`--stack hpc` with its steps in the training image: as a SIF file by Apptainer, and unpacked by Charliecloud, on two nodes.

`make test-images` runs these.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hls_foundry.endpoints.engine import Engine
from tests.conftest import ROOT, missing
from tests.containers.running import built
from tests.e2e.login_node import STEPS, LoginNode, SubmittedRun, Training, ended, on_a_cluster, until

pytestmark = [pytest.mark.image, pytest.mark.e2e, pytest.mark.timeout(1800)]

SHAPE = ("--nodes", "2", "--cpus", "2", "--memory", "3300")
QUICK = ("--set", "training.epochs=1", "--set", "training.max_steps=4")
CHEAP = "-comp zstd -Xcompression-level 1"
"""Compression for mksquashfs: an image that lives for minutes need not be small."""
IMAGES = """
import json, sys
from zenml.client import Client
run = Client().get_pipeline_run(sys.argv[1])
print(json.dumps({name: step.run_metadata.get("slurm", {}).get("image") for name, step in run.steps.items()}))
"""


@dataclass(frozen=True)
class Exported:
    """The training image in an engine's hands."""

    engine: Engine
    name: str

    def engine_does(self, *words: str) -> str:
        return subprocess.run([self.engine.program, *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def exported() -> Iterator[Exported]:
    with built("train") as (engine, name):
        yield Exported(engine, name)


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginNode]:
    with on_a_cluster(LoginNode(tmp_path_factory.mktemp("login")), *SHAPE) as login:
        yield login


@pytest.fixture(scope="module")
def apptainer() -> list[str]:
    """The words that start Apptainer."""
    found = shutil.which("apptainer")
    if found is None:
        missing("there is no Apptainer")
    return [str(found)]


@pytest.fixture(scope="module")
def sif(exported: Exported, apptainer: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sif")
    archive, image = folder / "train.tar", folder / "train.sif"
    exported.engine_does("save", "-o", str(archive), exported.name)
    done = subprocess.run(
        [*apptainer, "build", f"--mksquashfs-args={CHEAP}", image, f"docker-archive:{archive}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    archive.unlink()
    return image


@pytest.fixture(scope="module")
def unpacked(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a folder, as ch-convert makes one."""
    if not shutil.which("ch-run"):
        missing("there is no ch-run: Debian's charliecloud-runtime has it")
    image = tmp_path_factory.mktemp("charliecloud") / "image"
    image.mkdir()
    container = exported.engine_does("create", exported.name)
    try:
        with subprocess.Popen([exported.engine.program, "export", container], stdout=subprocess.PIPE) as packed:
            subprocess.run(["tar", "-x", "-C", image, "--exclude=dev/*"], stdin=packed.stdout, check=True)
    finally:
        exported.engine_does("rm", container)
    for name in ("etc/hosts", "etc/resolv.conf"):
        (image / name).touch()
    (image / "ch").mkdir()
    variables = json.loads(exported.engine_does("image", "inspect", "--format", "{{json .Config.Env}}", exported.name))
    (image / "ch" / "environment").write_text("".join(f"{line}\n" for line in variables))
    return image


def contained(runtime: str, image: Path, command: list[str] | None = None) -> dict[str, str]:
    return {"HLS_CONTAINER": runtime, "HLS_CONTAINER_IMAGE": str(image), "HLS_CONTAINER_COMMAND": " ".join(command or [])}


def images_in_zenml(login: LoginNode, summary: dict[str, Any]) -> dict[str, str]:
    ask = [sys.executable, "-c", IMAGES, summary["runs"][0]["id"]]
    done = subprocess.run(ask, env=login.environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def train(login: LoginNode, environment: dict[str, str], *more: str) -> dict[str, Any]:
    file = login.folder / "summary.json"
    login.run(*login.hpc(*QUICK, *more, "--json", str(file)), **environment)
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def test_doctor_sees_runtime_image_and_its_packages_from_a_node(login: LoginNode, sif: Path, apptainer: list[str]) -> None:
    said = login.run("doctor", "--stack", "hpc", **contained("apptainer", sif, apptainer)).stdout
    assert f"{sif} is a SIF file" in said
    assert f"apptainer runs {sif} on n" in said
    assert "packages as in requirements.lock" in said


def test_the_pipeline_runs_in_a_sif_on_two_nodes_and_lineage_has_its_digest(login: LoginNode, sif: Path, apptainer: list[str]) -> None:
    summary = train(login, contained("apptainer", sif, apptainer))
    assert (summary["status"], summary["model"]["stage"]) == ("completed", "production")
    steps = summary["slurm"]["steps"]
    assert [(name, step["state"], step["nodes"]) for name, step in steps.items()] == [
        (name, "COMPLETED", 2 if name == "fine_tune" else 1) for name in STEPS
    ]
    with sif.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert images_in_zenml(login, summary) == dict.fromkeys(STEPS, f"apptainer {sif} sha256:{digest}")
    packed = subprocess.run(["tar", "-xzOf", summary["model"]["uri"], "model.json"], capture_output=True, check=True).stdout
    lineage = json.loads(packed)["lineage"]
    assert lineage["image"].endswith(digest)
    assert Training.of(login.home, 4), "the image's own HLS_FOUNDRY_HOME has won"
    run = SubmittedRun(Path(summary["slurm"]["folder"]))
    assert "2 nodes" in run.log()
    assert "Traceback" not in "".join(run.log(name) for name in STEPS)


def test_a_training_that_is_preempted_in_a_container_saves_and_goes_on(login: LoginNode, unpacked: Path) -> None:
    """By Charliecloud, from a folder. A job of the partition `urgent` takes the nodes."""
    steps, file = 14, login.folder / "preempted.json"
    arguments = login.hpc("--set", f"training.max_steps={steps}", "--set", "training.checkpoint_every=100", "--json", str(file))
    before = login.run_folders()
    process = login.start(*arguments, **contained("charliecloud", unpacked))
    try:
        run = SubmittedRun(until(lambda: login.run_folders() - before, "the submission").pop())
        training = until(lambda: Training.of(login.home, steps), "the training")
        with training.held_at(3):
            login.slurm("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
            until(lambda: run.log().count("SIGUSR1 from Slurm") == 1, "the warning before preemption")
        ended(process)
    finally:
        process.kill()
    summary = json.loads(file.read_text())
    assert summary["status"] == "completed"
    assert summary["slurm"]["steps"]["fine_tune"]["restarts"] == 1
    # No other checkpoint than that of the signal: without it, steps would be repeated.
    assert [record["step"] for record in training.records] == list(range(1, steps + 1))
    images = images_in_zenml(login, summary)  # of the steps that ran: the others came from the cache
    assert all(images[name].startswith(f"charliecloud {unpacked} sha256:") for name in summary["slurm"]["steps"])
