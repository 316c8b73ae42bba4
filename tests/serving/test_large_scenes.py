"""Large scenes are predicted from their file, a row of tiles at a time, with the bits and the errors of small ones."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.errors import RequestError
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.rasters import mask_as_uint8
from hls_foundry.serving import decode as decoding
from hls_foundry.serving.decode import LargeScene, decode
from hls_foundry.serving.negotiation import ReplyFormat, RequestFormat
from hls_foundry.serving.registry import LoadedModel, load_model
from hls_foundry.serving.replies import predict
from hls_foundry.serving.s3 import S3Images
from hls_foundry.serving.settings import ServingSettings
from hls_foundry.serving.spool import Spool
from tests.serving.conftest import BUCKET, Aws
from tests.serving.running import RunningServer
from tests.serving.scenes import scene_tiff

TILED: dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256}
SIDE = 1500


def images(**environment: str) -> S3Images:
    return S3Images(ServingSettings.from_environment(environment))


def spooled(content: bytes, in_memory: int = 1024) -> Spool:
    spool = Spool(in_memory)
    spool.write(content)
    return spool


def decoded(body: bytes | Spool, attributes: str = "") -> Any:
    return decode(RequestFormat.TIFF, body, attributes, images=images(), max_pixels=4096 * 4096)


@pytest.fixture(scope="module")
def model(bundle: Path) -> LoadedModel:
    return load_model("model", bundle)


@pytest.fixture(scope="module")
def large() -> bytes:
    return scene_tiff(SIDE, **TILED)


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(decoding, "LARGE_PIXELS", 0)


@pytest.mark.parametrize("kind", list(ReplyFormat))
@pytest.mark.parametrize("options", ["", "threshold=0.3;bands=6,5,4,3,2,1"])
def test_a_large_scene_has_the_bits_of_a_small_one(
    model: LoadedModel, all_are_large: Callable[[], None], kind: ReplyFormat, options: str
) -> None:
    tiff = scene_tiff(331, seed=2, width=275)
    whole = bytes(predict(model, decoded(tiff, options), kind, lambda: None))
    all_are_large()
    for body in (tiff, spooled(tiff)):
        with decoded(body, options) as scene:
            assert isinstance(scene.scene, LargeScene)
            assert bytes(predict(model, scene, kind, lambda: None)) == whole


def test_only_scenes_that_are_large_and_can_be_read_by_rows_stay_in_their_file(large: bytes) -> None:
    assert isinstance(decoded(large).scene, LargeScene)
    assert not isinstance(decoded(scene_tiff(256)).scene, LargeScene)
    in_tall_blocks = scene_tiff(SIDE, tiled=True, blockxsize=64, blockysize=2048)
    assert not isinstance(decoded(in_tall_blocks).scene, LargeScene)


def test_work_on_a_large_scene_ends_at_the_next_row_when_nobody_waits(model: LoadedModel, large: bytes) -> None:
    class Gone(Exception):
        pass

    seen = []

    def checkpoint() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Gone

    with decoded(large) as scene, pytest.raises(Gone):
        predict(model, scene, ReplyFormat.TIFF, checkpoint)


def test_damage_that_only_shows_in_the_last_rows_is_a_422_without_a_path(model: LoadedModel, all_are_large: Callable[[], None]) -> None:
    all_are_large()
    tiff = scene_tiff(512, **TILED)
    with rasterio.MemoryFile(tiff) as memory, memory.open() as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=6))
    assert offset > len(tiff) // 2
    for body in (tiff[:offset], spooled(tiff[:offset])):
        with pytest.raises(RequestError) as refusal, decoded(body) as scene:
            predict(model, scene, ReplyFormat.TIFF, lambda: None)
        assert refusal.value.status == 422
        assert "/proc" not in refusal.value.detail
        assert "the image" in refusal.value.detail


def test_a_spool_is_in_memory_until_it_is_large_and_never_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spool(10) as spool:
        spool.write(b"0123456789")
        assert spool.source() == b"0123456789"
        spool.write(b"abc")
        path = spool.source()
        assert isinstance(path, Path)
        assert path.read_bytes() == spool.content() == b"0123456789abc"
        assert (spool.start(3), spool.size) == (b"012", 13)
        assert list(tmp_path.iterdir()) == []
    assert not path.exists()


def test_a_server_answers_large_scenes_in_little_memory(bundle: Path, aws: Aws, large: bytes, tmp_path: Path) -> None:
    aws.s3.put_object(Bucket=BUCKET, Key="large.tif", Body=large)
    by_uri = json.dumps({"image": f"s3://{BUCKET}/large.tif"}).encode()
    settings = {"SM_MODEL_DIR": str(bundle), "HLS_S3_ALLOW": BUCKET, "TMPDIR": str(tmp_path), **aws.environment}
    try:
        with RunningServer(tmp_path / "server.log", **settings) as server:
            server.wait_ready()
            client: EndpointClient = server.client
            assert client.invoke(scene_tiff(512), accept="image/tiff").status == 200
            before = peak_mb(server)
            direct = client.invoke(large, accept="image/tiff")
            grown = peak_mb(server) - before
            from_s3 = client.invoke(by_uri, content_type="application/json", accept="application/x-npy")
    finally:
        aws.s3.delete_object(Bucket=BUCKET, Key="large.tif")
    assert (direct.status, from_s3.status) == (200, 200)
    with rasterio.MemoryFile(direct.body) as memory, memory.open() as dataset:
        mask = dataset.read(1)
    probabilities = np.load(io.BytesIO(from_s3.body))
    assert (probabilities.shape, probabilities.dtype) == ((2, SIDE, SIDE), np.float32)
    np.testing.assert_array_equal(mask_as_uint8(mask_from_probabilities(probabilities)), mask)
    assert grown < 90, f"{grown:.0f} MB for a scene of {len(large) / 2**20:.0f} MB"
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]


def peak_mb(server: RunningServer) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
