"""The inference test passes on an endpoint that serves its bundle, and finds what is wrong with one that does not."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from hls_foundry.chips.scene import Grid
from hls_foundry.config import DataConfig
from hls_foundry.endpoints.client import EndpointClient, Reply
from hls_foundry.endpoints.inference_test import REPLIES, REQUESTS, run_inference_test
from hls_foundry.errors import EndpointError
from hls_foundry.inference.rasters import write_cog
from tests.serving.bundles import tiny_bundle
from tests.serving.running import RunningServer
from tests.serving.scenes import scene_tiff

DATA = DataConfig(source="test")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "model", seed=3)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server") / "log", SM_MODEL_DIR=str(bundle)) as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chips")


@pytest.fixture(scope="module")
def chips(root: Path) -> pd.DataFrame:
    """Six chips of several sizes and CRS, one without a mask."""
    rows = []
    for index, (size, crs) in enumerate(
        [(96, "EPSG:32610"), (224, "EPSG:32610"), (128, "EPSG:4326"), (250, None), (96, "EPSG:3857"), (300, "EPSG:5070")]
    ):
        image, mask = f"chip{index}_merged.tif", f"chip{index}.mask.tif"
        (root / image).write_bytes(_placed(size, index, crs))
        with rasterio.open(root / mask, "w", driver="GTiff", count=1, height=size, width=size, dtype="int16", nodata=-1) as dataset:
            label = np.zeros((size, size), np.int16)
            label[: size // 2], label[:4] = 1, -1
            dataset.write(label, 1)
        rows.append({"chip": f"chip{index}", "image": image, "mask": mask if index != 5 else ""})
    return pd.DataFrame(rows)


def _placed(size: int, seed: int, crs: str | None) -> bytes:
    if crs == "EPSG:4326":
        return scene_tiff(size, seed, crs=crs, origin=(-122.0, 40.0), step=0.0003)
    return scene_tiff(size, seed, crs=crs, origin=(-13e6, 4.8e6)) if crs == "EPSG:3857" else scene_tiff(size, seed, crs=crs)


class Tampering:
    """An endpoint that answers something else than it should."""

    def __init__(self, client: EndpointClient, how: str) -> None:
        self._client, self._how = client, how

    def invoke(self, body: bytes, *, content_type: str, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        reply = self._client.invoke(body, content_type=content_type, accept=accept, attributes=attributes)
        if reply.status != 200:
            return Reply(200, reply.headers, b"{}", reply.seconds) if self._how == "accepts everything" else reply
        return Reply(reply.status, reply.headers, self._tampered(accept, reply.body), reply.seconds)

    def _tampered(self, accept: str, body: bytes) -> bytes:
        if self._how == "flips pixels" and accept == "application/x-npy":
            probabilities = np.load(io.BytesIO(body))
            probabilities[:, 20:24, 20:24] = probabilities[::-1, 20:24, 20:24]
            buffer = io.BytesIO()
            np.save(buffer, probabilities)
            return buffer.getvalue()
        if self._how == "shifts the grid" and accept == "image/tiff":
            with rasterio.MemoryFile(body) as memory, memory.open() as dataset:
                moved = dataset.transform @ rasterio.Affine.translation(1, 0)
                return write_cog(None, dataset.read(), Grid(dataset.width, dataset.height, moved, dataset.crs), dataset.nodata)
        if self._how in ("moves polygons", "loses polygons", "twists polygons") and accept == "application/geo+json":
            document = json.loads(body)
            if self._how == "loses polygons":
                document["features"] = document["features"][1:]
            for feature in document["features"]:
                geometry = feature["geometry"]
                if self._how == "moves polygons" and geometry["type"] == "Polygon":
                    geometry["coordinates"] = [[[x + 1, y] for x, y in ring] for ring in geometry["coordinates"]]
                elif self._how == "twists polygons" and geometry["type"] == "Polygon":
                    geometry["coordinates"] = [[ring[1], ring[0], *ring[2:-1], ring[1]] for ring in geometry["coordinates"]]
            return json.dumps(document).encode()
        return body


def test_an_endpoint_that_serves_its_bundle_passes(
    server: RunningServer, bundle: Path, chips: pd.DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hls_foundry.endpoints.inference_test.PICTURES", 2)
    progress: list[tuple[int, int]] = []
    report = run_inference_test(server.client, bundle, chips, root, data=DATA, progress=lambda done, total: progress.append((done, total)))
    assert report.problems() == []
    assert report.passes()
    assert report.agreement >= 0.9999
    assert report.errors == 0
    assert report.requests == 6 * 4 + len(report.bad_requests)
    assert {(result.request, result.reply) for result in report.formats if result.requests} == {(q, r) for q in REQUESTS for r in REPLIES}
    assert 0 < report.p50_ms <= report.p95_ms
    assert report.iou is not None
    assert 0 < report.iou < 1
    assert progress[-1] == (6, 6)
    assert [prediction.chip for prediction in report.predictions] == list(chips["chip"])
    assert all(prediction.mask is not None and prediction.collection is not None for prediction in report.predictions)
    by_size = sorted(report.predictions, key=lambda prediction: -prediction.found)
    assert [prediction.picture is not None for prediction in by_size] == [True] * 2 + [False] * 4, "imagery of those with the most class 1"
    assert set(report.summary()) == {"requests", "errors", "agreement", "iou", "p50_ms", "p95_ms"}


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("flips pixels", "agree"),
        ("shifts the grid", "not on the image's grid"),
        ("moves polygons", "out of the image"),
        ("loses polygons", "the polygons cover"),
        ("twists polygons", "not valid"),
        ("accepts everything", "bad request"),
    ],
)
def test_an_endpoint_that_answers_something_else_fails(
    server: RunningServer, bundle: Path, chips: pd.DataFrame, root: Path, how: str, word: str
) -> None:
    report = run_inference_test(Tampering(server.client, how), bundle, chips.head(3), root, data=DATA)
    assert any(word in problem for problem in report.problems()), report.problems()
    assert not report.passes()


def test_another_models_endpoint_fails(server: RunningServer, chips: pd.DataFrame, root: Path, tmp_path: Path) -> None:
    report = run_inference_test(server.client, tiny_bundle(tmp_path / "other", seed=9), chips.head(1), root, data=DATA)
    assert not report.passes()
    assert report.agreement < 0.9999


def test_an_endpoint_that_does_not_answer_is_a_failure_in_the_report(bundle: Path, chips: pd.DataFrame, root: Path) -> None:
    with EndpointClient("http://127.0.0.1:9") as nobody:
        report = run_inference_test(nobody, bundle, chips.head(1), root, data=DATA)
    assert report.errors == report.requests
    assert not report.passes()


def test_no_chips_is_an_error(server: RunningServer, bundle: Path, chips: pd.DataFrame, root: Path) -> None:
    with pytest.raises(EndpointError, match="no chips"):
        run_inference_test(server.client, bundle, chips.head(0), root, data=DATA)
