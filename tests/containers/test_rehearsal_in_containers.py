"""The rehearsal of AWS with containers in place of processes: the image that CreateModel names is the one that answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from hls_foundry.config import DataConfig
from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.inference_test import run_inference_test
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from hls_foundry.endpoints.sagemaker.endpoints import ModelVersion, SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.invoker import inbox_of, invoker_for
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.endpoints.settings import SageMakerSettings
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle, pack_bundle
from stacks.aws.rehearsal import Prepared, Rehearsal
from stacks.aws.rehearsal.engines import LABEL
from tests.aws.rehearsed import until
from tests.containers.running import Image
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import scene_tiff

TASKS = ("burn_scars", "flood")

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]


@dataclass
class Cloud:
    """The rehearsal, whose containers are `image`'s; `bundles` and what was published of them by task."""

    image: Image
    rehearsal: Rehearsal
    prepared: Prepared
    aws: Aws
    bundles: dict[str, Path]
    versions: dict[str, ModelVersion]

    def deploy(self, **given: object) -> SageMakerEndpoint:
        settings = SageMakerSettings.model_validate(
            {"role": self.prepared.role, "image": self.prepared.image, "startup_s": 120, "s3_allow": (self.prepared.bucket,), **given}
        )
        wanted = self.versions if settings.kind == "multi_model" else {"burn_scars": self.versions["burn_scars"]}
        return SageMakerEndpoints(self.aws, pace=Pace(first=0.1, growth=1.2, most=0.5)).deploy(settings, wanted)

    def containers(self, what: str = "{{.Image}}") -> list[str]:
        command = [self.image.engine, "ps", "--all", "--filter", f"label={LABEL}={self.rehearsal.home}", "--format", what]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def cloud(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    rehearsal = Rehearsal(folder, threads=1)
    rehearsal.up(image.name)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in rehearsal.environment.items():
                patch.setenv(name, value)
            prepared, aws = rehearsal.prepare(), Aws()
            bundles = {task: tiny_bundle(folder / task, seed) for seed, task in enumerate(TASKS)}
            versions = {}
            for task, bundle in bundles.items():
                archive = bundle.with_suffix(".tar.gz")
                digest, key = pack_bundle(bundle, archive), f"hls-foundry/{task}/1/model.tar.gz"
                aws.client("s3").upload_file(str(archive), prepared.bucket, key)
                versions[task] = ModelVersion(f"s3://{prepared.bucket}/{key}", digest, "1", load_bundle(bundle).sha256)
            made = Cloud(image, rehearsal, prepared, aws, bundles, versions)
            yield made
    finally:
        rehearsal.down()
    assert made.containers() == []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chips")


@pytest.fixture(scope="module")
def chips(root: Path) -> pd.DataFrame:
    for index, size in enumerate((96, 128, 80)):
        (root / f"{index}.tif").write_bytes(scene_tiff(size, index))
    return pd.DataFrame([{"chip": str(index), "image": f"{index}.tif", "mask": ""} for index in range(3)])


def test_create_model_s_image_answers_as_this_process_and_reads_s3(cloud: Cloud, chips: pd.DataFrame, root: Path) -> None:
    endpoint = cloud.deploy(name="scars")
    assert cloud.containers() == [cloud.prepared.image]
    (name,) = cloud.containers("{{.Names}}")
    inspect = [cloud.image.engine, "container", "inspect", "--format", "{{.Image}}", name]
    running = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.strip()
    assert running.removeprefix("sha256:") == cloud.image.tells("{{.Id}}").removeprefix("sha256:")
    mounts = subprocess.run([cloud.image.engine, "exec", name, "ls", "/opt/ml/model"], capture_output=True, text=True, check=True).stdout
    assert set(mounts.split()) == {"README.md", "model.json", "model.safetensors"}
    invoker, inbox = invoker_for(endpoint, cloud.aws, task="burn_scars", wait_s=60), inbox_of(endpoint, cloud.aws)
    report = run_inference_test(invoker, cloud.bundles["burn_scars"], chips, root, data=DataConfig(source="test"), s3=inbox)
    assert report.problems() == []
    assert report.agreement >= 0.9999
    assert len(report.bad_requests) == 25
    cloud.rehearsal.faults.kill_container("scars")
    until(lambda: [one["starts"] for one in cloud.rehearsal.faults.containers("scars") if one["healthy"]] == [2])
    assert invoker.invoke((root / "0.tif").read_bytes(), content_type="image/tiff").status == 200


@pytest.mark.parametrize("task", TASKS)
def test_one_container_holds_both_tasks_models(cloud: Cloud, chips: pd.DataFrame, root: Path, task: str) -> None:
    endpoint = cloud.deploy(name="both", kind="multi_model", tasks=TASKS)
    invoker = invoker_for(endpoint, cloud.aws, task=task, wait_s=60)
    report = run_inference_test(invoker, cloud.bundles[task], chips, root, data=DataConfig(source="test"))
    assert report.problems() == []
    assert report.agreement >= 0.9999


def test_an_image_that_the_engine_does_not_have_fails_with_the_reason(cloud: Cloud) -> None:
    subprocess.run([cloud.image.engine, "tag", cloud.prepared.image, cloud.image.name], check=True, capture_output=True)
    command = (
        ["untag", cloud.prepared.image, cloud.prepared.image]
        if cloud.image.engine == "podman"
        else ["rmi", "--no-prune", cloud.prepared.image]
    )
    subprocess.run([cloud.image.engine, *command], check=True, capture_output=True)
    try:
        with pytest.raises(EndpointError, match="Failed to pull the image") as refusal:
            cloud.deploy(name="none")
        assert "\n" not in str(refusal.value)
    finally:
        subprocess.run([cloud.image.engine, "tag", cloud.image.name, cloud.prepared.image], check=True, capture_output=True)


def test_a_rehearsal_with_processes_is_not_turned_into_one_with_containers(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndpointError, match="has no image nobody/made:this"):
        Rehearsal(tmp_path).up("nobody/made:this")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EndpointError, match="no container engine"):
        Rehearsal(tmp_path).up(image.name)
