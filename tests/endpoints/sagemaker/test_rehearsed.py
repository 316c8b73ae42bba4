"""Deployments over containers: the project's own serving application, started by the rehearsal's runtime as SageMaker does."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

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


class TenASecond:
    """Calls the endpoint every tenth of a second, each call once, whether or not those before have been answered.

    `answered`: the digest of the model that each call got its answer from, in the order of the calls; `errors`: of calls that got none.
    """

    def __init__(self, name: str) -> None:
        self._name, self._stop = name, threading.Event()
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=20)
        self._runtime = boto3.client("sagemaker-runtime", config=config)
        self._thread = threading.Thread(target=self._call_on)
        self.answered: list[str] = []
        self.errors: list[BaseException] = []
        self.rate = 0.0

    def __enter__(self) -> TenASecond:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _call_on(self) -> None:
        started, scene = time.monotonic(), scene_tiff(64)
        with ThreadPoolExecutor(16) as pool:
            calls: list[Future[str]] = []
            while not self._stop.wait(max(0.0, started + 0.1 * len(calls) - time.monotonic())):
                calls.append(pool.submit(self._call, scene))
            self.rate = len(calls) / (time.monotonic() - started)
        self.errors = [error for call in calls if (error := call.exception())]
        self.answered = [call.result() for call in calls if not call.exception()]

    def _call(self, scene: bytes) -> str:
        reply = self._runtime.invoke_endpoint(EndpointName=self._name, Body=scene, ContentType="image/tiff", Accept="image/tiff")
        reply["Body"].read()
        return str(reply["CustomAttributes"]).partition("=")[2]


def test_updates_under_load_fail_no_call_and_one_that_does_not_pass_is_taken_back(
    prepared: Prepared, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    endpoints = SageMakerEndpoints(Aws(), pace=PACE)
    settings = SageMakerSettings(name="loaded", role=prepared.role, image=prepared.image, startup_s=60)
    old, new = (publish(prepared, bundle, "burn_scars", version, tmp_path) for bundle, version in zip(bundles, "12", strict=True))
    first = endpoints.deploy(settings, {"burn_scars": old})
    kept: list[set[str]] = []

    def refuse(task: str, invoker: Invoker) -> None:
        assert served(invoker) == new.bundle_sha256
        kept.append({config["EndpointConfigName"] for config in boto3.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]})
        raise EndpointError("agreement 0.2 is less than 0.9999")

    with TenASecond("loaded") as client:
        with pytest.raises(EndpointError, match="agreement"):
            endpoints.deploy(settings, {"burn_scars": new}, check=refuse)
        time.sleep(0.5)
    assert client.errors == []
    assert client.rate > 9
    assert first.config in kept[0]
    assert (client.answered[0], client.answered[-1]) == (old.bundle_sha256, old.bundle_sha256)
    assert set(client.answered) <= {old.bundle_sha256, new.bundle_sha256}
    assert endpoints.get("loaded").config == first.config
    left = boto3.client("sagemaker").list_endpoint_configs(NameContains="loaded")["EndpointConfigs"]
    assert [config["EndpointConfigName"] for config in left] == [first.config]

    seen: list[str] = []
    with TenASecond("loaded") as client:
        endpoints.deploy(settings, {"burn_scars": new}, check=lambda task, invoker: seen.append(served(invoker)))
        time.sleep(0.5)
    assert client.errors == []
    assert client.rate > 9
    assert (client.answered[0], client.answered[-1]) == (old.bundle_sha256, new.bundle_sha256)
    assert seen == [new.bundle_sha256]
    assert endpoints.get("loaded").model_version == "2"
    endpoints.delete("loaded")


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
