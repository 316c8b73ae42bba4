"""Deployments over containers: the project's own serving application, started by the rehearsal's runtime as SageMaker does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.client import Invoker
from hls_foundry.endpoints.sagemaker.endpoints import ModelVersion, SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.endpoints.settings import SageMakerSettings
from hls_foundry.errors import EndpointError
from hls_foundry.models.bundle import load_bundle, pack_bundle
from stacks.aws.rehearsal import Prepared, Rehearsal
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import scene_tiff

PACE = Pace(first=0.1, most=0.5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    rehearsal = Rehearsal(tmp_path_factory.mktemp("rehearsal"), threads=1)
    rehearsal.up()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in rehearsal.environment.items():
            patch.setenv(name, value)
        yield rehearsal.prepare()
    rehearsal.down()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return tiny_bundle(folder / "one", seed=1), tiny_bundle(folder / "two", seed=2)


def publish(prepared: Prepared, bundle: Path, task: str, version: str, folder: Path) -> ModelVersion:
    archive = folder / f"{task}-{version}.tar.gz"
    digest = pack_bundle(bundle, archive)
    key = f"hls-foundry/{task}/{version}-{digest[:12]}/model.tar.gz"
    boto3.client("s3").upload_file(str(archive), prepared.bucket, key)
    return ModelVersion(f"s3://{prepared.bucket}/{key}", digest, version, load_bundle(bundle).sha256)


def served(invoker: Invoker) -> str:
    reply = invoker.invoke(scene_tiff(64), content_type="image/tiff", accept="image/tiff")
    assert reply.status == 200, reply.body
    return reply.headers["x-amzn-sagemaker-custom-attributes"].partition("=")[2]


def test_an_archive_that_was_changed_in_s3_is_not_served(prepared: Prepared, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    endpoints = SageMakerEndpoints(Aws(), pace=PACE)
    settings = SageMakerSettings(name="changed", role=prepared.role, image=prepared.image, startup_s=60)
    seen: list[str] = []
    good = publish(prepared, bundles[0], "burn_scars", "1", tmp_path)
    endpoints.deploy(settings, {"burn_scars": good}, check=lambda task, invoker: seen.append(served(invoker)))
    assert seen == [good.bundle_sha256]
    other = publish(prepared, bundles[1], "burn_scars", "2", tmp_path)
    bucket, key = other.uri.removeprefix("s3://").split("/", 1)
    boto3.client("s3").upload_file(str(tmp_path / "burn_scars-1.tar.gz"), bucket, key)
    with pytest.raises(
        EndpointError, match=rf"'changed' was not updated: .*; its container said last: .*not {other.bundle_sha256}"
    ) as error:
        endpoints.deploy(settings, {"burn_scars": other}, check=lambda *_: pytest.fail("it must not come up"))
    assert "\n" not in str(error.value)
    assert endpoints.get("changed").model_version == "1"
    endpoints.delete("changed")
    assert endpoints.list() == []


def test_both_tasks_answer_behind_one_endpoint_each_with_its_own_model(
    prepared: Prepared, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    endpoints = SageMakerEndpoints(Aws(), pace=PACE)
    tasks = ("burn_scars", "flood")
    models = {task: publish(prepared, bundle, task, "1", tmp_path) for task, bundle in zip(tasks, bundles, strict=True)}
    settings = SageMakerSettings(name="both", kind="multi_model", role=prepared.role, image=prepared.image, tasks=tasks, startup_s=60)
    seen: dict[str, str] = {}
    endpoint = endpoints.deploy(settings, models, check=lambda task, invoker: seen.update({task: served(invoker)}))
    assert seen == {task: models[task].bundle_sha256 for task in tasks}
    (tmp_path / "SCENE.tif").write_bytes(scene_tiff(64))
    curl = next(line.partition(":")[2] for line in endpoint.commands("python run.py") if line.startswith("curl"))
    reply = subprocess.run(["bash", "-c", curl], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert json.loads(reply)["type"] == "FeatureCollection"
    endpoints.delete("both", objects=True)
