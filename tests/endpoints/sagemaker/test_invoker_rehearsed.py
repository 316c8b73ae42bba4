"""All four kinds of endpoint in the rehearsal, with the real serving application behind them: the inference test, large scenes, predict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch

from hls_foundry.config import DataConfig
from hls_foundry.endpoints.aws import Aws
from hls_foundry.endpoints.inference_test import REPLIES, REQUESTS, S3_URI, run_inference_test
from hls_foundry.endpoints.predict import PredictRequest, predict_file
from hls_foundry.endpoints.sagemaker.endpoint import SageMakerEndpoint
from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints
from hls_foundry.endpoints.sagemaker.invoker import MAX_BODY, SageMakerInvoker, inbox_of, invoker_for
from hls_foundry.endpoints.sagemaker.resources import ModelVersion
from hls_foundry.endpoints.sagemaker.waiting import Pace
from hls_foundry.endpoints.settings import SageMakerSettings
from hls_foundry.errors import EndpointError
from hls_foundry.inference.predictor import Predictor
from hls_foundry.models.bundle import load_bundle, pack_bundle
from stacks.aws.rehearsal import Prepared, Rehearsal
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import reflectance, scene_tiff

DATA = DataConfig(source="test")
TASKS = ("burn_scars", "flood")
KINDS = ("realtime", "serverless", "async", "multi_model")
S30 = ("B02", "B03", "B04", "B8A", "B11", "B12")


@dataclass
class Cloud:
    """The rehearsal with one endpoint of each kind; `bundles` by task."""

    rehearsal: Rehearsal
    prepared: Prepared
    aws: Aws
    bundles: dict[str, Path]
    endpoints: dict[str, SageMakerEndpoint]

    def invoker(self, kind: str, task: str = "burn_scars") -> SageMakerInvoker:
        return invoker_for(self.endpoints[kind], self.aws, task=task, wait_s=60)

    def requests_left(self) -> list[str]:
        """Objects of requests and replies in the bucket."""
        found = self.aws.client("s3").list_objects_v2(Bucket=self.prepared.bucket).get("Contents", [])
        return [one["Key"] for one in found if "/inbox/" in one["Key"] or one["Key"].startswith("results/")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    rehearsal = Rehearsal(folder, threads=1)
    rehearsal.up()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in rehearsal.environment.items():
                patch.setenv(name, value)
            prepared, aws = rehearsal.prepare(), Aws()
            bundles = {task: tiny_bundle(folder / task, seed) for seed, task in enumerate(TASKS)}
            models = {task: publish(bundle, task, prepared.bucket, aws) for task, bundle in bundles.items()}
            with ThreadPoolExecutor() as pool:
                made = pool.map(lambda kind: deploy(kind, models, prepared, aws), KINDS)
            yield Cloud(rehearsal, prepared, aws, bundles, dict(zip(KINDS, made, strict=True)))
    finally:
        rehearsal.down()


def publish(bundle: Path, task: str, bucket: str, aws: Aws) -> ModelVersion:
    archive = bundle.with_suffix(".tar.gz")
    digest = pack_bundle(bundle, archive)
    key = f"hls-foundry/{task}/1-{digest[:12]}/model.tar.gz"
    aws.client("s3").upload_file(str(archive), bucket, key)
    return ModelVersion(f"s3://{bucket}/{key}", digest, "1", load_bundle(bundle).sha256)


def deploy(kind: str, models: dict[str, ModelVersion], prepared: Prepared, aws: Aws) -> SageMakerEndpoint:
    given: dict[str, Any] = {"name": f"scars-{kind}", "kind": kind, "role": prepared.role, "image": prepared.image, "startup_s": 60}
    if kind == "multi_model":
        given["tasks"] = TASKS
    if kind == "async":
        given["output_prefix"] = f"s3://{prepared.bucket}/results"
    given["s3_allow"] = (prepared.bucket,)
    settings = SageMakerSettings.model_validate(given)
    wanted = models if kind == "multi_model" else {"burn_scars": models["burn_scars"]}
    return SageMakerEndpoints(aws, pace=Pace(first=0.05, growth=1.2, most=0.3)).deploy(settings, wanted)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chips")


@pytest.fixture(scope="module")
def chips(root: Path) -> pd.DataFrame:
    rows = []
    for index, size in enumerate((96, 128, 80)):
        (root / f"chip{index}_merged.tif").write_bytes(scene_tiff(size, index))
        with rasterio.open(root / f"chip{index}.mask.tif", "w", driver="GTiff", count=1, height=size, width=size, dtype="int16") as mask:
            mask.write(np.tri(size, dtype=np.int16), 1)
        rows.append({"chip": f"chip{index}", "image": f"chip{index}_merged.tif", "mask": f"chip{index}.mask.tif"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("kind", "task"), [*((kind, "burn_scars") for kind in KINDS), ("multi_model", "flood")])
def test_the_inference_test_passes_on_every_kind_inline_and_by_uri(
    cloud: Cloud, chips: pd.DataFrame, root: Path, kind: str, task: str
) -> None:
    inbox = inbox_of(cloud.endpoints[kind], cloud.aws)
    report = run_inference_test(cloud.invoker(kind, task), cloud.bundles[task], chips, root, data=DATA, s3=inbox)
    assert report.problems() == []
    assert report.agreement >= 0.9999
    sent = {(result.request, result.reply): result.requests for result in report.formats}
    assert all(sent[request, reply] for request in REQUESTS for reply in REPLIES)
    assert sent[S3_URI, "image/tiff"] == len(chips)
    assert sum(sent[S3_URI, reply] for reply in REPLIES) == 2 * len(chips)
    assert len(report.bad_requests) == 25
    assert cloud.requests_left() == []


def test_the_other_tasks_model_fails_the_inference_test(cloud: Cloud, chips: pd.DataFrame, root: Path) -> None:
    report = run_inference_test(cloud.invoker("multi_model", "flood"), cloud.bundles["burn_scars"], chips.head(1), root, data=DATA)
    assert report.agreement < 0.9999
    assert not report.passes()


def test_chips_that_a_request_does_not_carry_are_tested_by_their_uri(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "chip.tif").write_bytes(scene_tiff(700))  # 5.6 MB, as JSON 7.5 MB, as an array 11 MB; serverless takes 4
    table = pd.DataFrame([{"chip": "large", "image": "chip.tif", "mask": ""}])
    inbox = inbox_of(cloud.endpoints["serverless"], cloud.aws)
    report = run_inference_test(cloud.invoker("serverless"), cloud.bundles["burn_scars"], table, tmp_path, data=DATA, s3=inbox)
    assert report.problems() == []
    assert report.agreement == 1.0
    assert {(result.request, result.reply) for result in report.formats if result.requests} == {(S3_URI, reply) for reply in REPLIES}
    assert any("larger than one request carries" in note for note in report.notes())
    without = run_inference_test(cloud.invoker("serverless"), cloud.bundles["burn_scars"], table, tmp_path, data=DATA)
    assert any("no S3 to send it through" in problem for problem in without.problems())


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_larger_than_a_request_is_answered_by_every_kind(cloud: Cloud, kind: str) -> None:
    scene = scene_tiff(740)
    assert len(scene) > MAX_BODY["realtime"]
    reply = cloud.invoker(kind).invoke(scene, content_type="image/tiff", accept="image/tiff", attributes="threshold=0.4")
    assert reply.status == 200, reply.body
    with rasterio.MemoryFile(reply.body) as memory, memory.open() as dataset:
        found = dataset.read(1)
    expected = predicted(cloud, 740, threshold=0.4)
    np.testing.assert_array_equal(np.where(found == 255, -1, found.astype(np.int16)), expected)
    assert cloud.requests_left() == []


def predicted(cloud: Cloud, size: int, *, threshold: float | None = None) -> np.ndarray:
    stored = np.nan_to_num(reflectance(size) * 10000, nan=-9999).round().astype(np.int16)
    pixels = np.where((stored == -9999).any(axis=0), np.float32(np.nan), stored * np.float32(1e-4)).astype(np.float32)
    return Predictor(load_bundle(cloud.bundles["burn_scars"])).mask(pixels, threshold)


@pytest.fixture(scope="module")
def granule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A granule of 400 × 400 pixels, one file a band."""
    folder = tmp_path_factory.mktemp("granule")
    stored = np.nan_to_num(reflectance(400) * 10000, nan=-9999).round().astype(np.int16)
    place = {"crs": "EPSG:32610", "transform": rasterio.transform.from_origin(600000, 4420000, 30, 30), "nodata": -9999}
    for band, values in zip(S30, stored, strict=True):
        path = folder / f"HLS.S30.T10TGS.2018285T190331.v2.0.{band}.tif"
        with rasterio.open(path, "w", driver="GTiff", count=1, height=400, width=400, dtype="int16", **place) as dataset:
            dataset.write(values, 1)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_predict_asks_an_endpoint_of_every_kind_for_a_granule(cloud: Cloud, granule: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "mask.tif"
    request = PredictRequest(granule, out=out)
    line = predict_file(request, tmp_path, task="burn_scars", bundle=None, endpoint=f"scars-{kind}".replace("_", "-"))
    assert str(out) in line
    with rasterio.open(out) as dataset:
        found = dataset.read(1)
        assert dataset.crs == "EPSG:32610"
    np.testing.assert_array_equal(np.where(found == 255, -1, found.astype(np.int16)), predicted(cloud, 400))
    assert cloud.requests_left() == []


def test_predict_writes_polygons_of_an_async_endpoint(cloud: Cloud, granule: Path, tmp_path: Path) -> None:
    files = tuple(sorted(granule.iterdir()))
    request = PredictRequest(files, out=tmp_path / "burnt.geojson", threshold=0.4)
    line = predict_file(request, tmp_path, task="burn_scars", bundle=None, endpoint="scars-async")
    document = json.loads((tmp_path / "burnt.geojson").read_text())
    assert f"{len(document['features'])} polygons" in line
    assert document["features"]


def test_predict_names_the_endpoints_when_there_is_none_of_that_name(cloud: Cloud, granule: Path, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"no endpoint 'other' on this machine .* on SageMaker: .*scars-realtime"):
        predict_file(PredictRequest(granule, out=tmp_path / "x.tif"), tmp_path, task="burn_scars", bundle=None, endpoint="other")


def test_what_the_container_may_not_read_is_said_by_the_container(cloud: Cloud) -> None:
    invoker = invoker_for(cloud.endpoints["realtime"], cloud.aws)
    reply = invoker.invoke(json.dumps({"image": "s3://another-bucket/scene.tif"}).encode(), content_type="application/json")
    assert (reply.status, reply.json()["error"]) == (422, "image_refused")


def test_throttling_and_a_killed_container_pass(cloud: Cloud) -> None:
    scene = scene_tiff(96)
    faults, name = cloud.rehearsal.faults, cloud.endpoints["realtime"].name
    faults.throttle(name, 3)
    assert cloud.invoker("realtime").invoke(scene, content_type="image/tiff").status == 200
    faults.kill_container(name)
    assert cloud.invoker("realtime").invoke(scene, content_type="image/tiff").status == 200
