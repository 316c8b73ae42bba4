"""The multi-model API, as the platform uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hls_foundry.endpoints.client import Reply
from hls_foundry.models.bundle import load_bundle
from tests.serving.bundles import tiny_bundle
from tests.serving.running import RunningServer
from tests.serving.scenes import scene_tiff


@pytest.fixture(scope="module")
def platform(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A multi-model server with memory for two of the tiny models, but not for a third beside them."""
    size = (bundle / "model.safetensors").stat().st_size / 2**20
    log = tmp_path_factory.mktemp("multi") / "log"
    with RunningServer(log, SAGEMAKER_MULTI_MODEL="true", HLS_MODEL_MEMORY_MB=f"{size * 3.2:.4f}") as server:
        yield server.wait_ready()


@pytest.fixture(autouse=True)
def unloaded(platform: RunningServer) -> Iterator[None]:
    yield
    for model in platform.client.request("GET", "/models").json()["models"]:
        platform.client.request("DELETE", f"/models/{model['modelName']}")


def load(server: RunningServer, name: str, folder: Path) -> Reply:
    return server.client.request("POST", "/models", json={"model_name": name, "url": str(folder)})


def test_a_model_is_loaded_shown_invoked_and_unloaded(platform: RunningServer, bundle: Path) -> None:
    client = platform.client
    assert client.request("GET", "/models").json() == {"models": []}
    assert client.invoke_model("burn", scene_tiff(64)).status == 404
    assert load(platform, "burn", bundle).status == 200
    assert client.request("GET", "/models/burn").json() == {"modelName": "burn", "modelUrl": str(bundle)}
    reply = client.invoke_model("burn", scene_tiff(64), accept="image/tiff")
    assert (reply.status, reply.media_type) == (200, "image/tiff")
    assert client.request("DELETE", "/models/burn").status == 200
    for method in ("GET", "DELETE"):
        assert client.request(method, "/models/burn").status == 404
    assert client.invoke_model("burn", scene_tiff(64)).status == 404


def test_each_name_answers_with_its_own_model(platform: RunningServer, bundle: Path, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", seed=5)
    for name, folder in (("one", bundle), ("two", other)):
        assert load(platform, name, folder).status == 200
    for name, folder in (("one", bundle), ("two", other)):
        reply = platform.client.invoke_model(name, scene_tiff(64))
        assert reply.headers["x-amzn-sagemaker-custom-attributes"] == f"model_sha256={load_bundle(folder).sha256}"


def test_models_of_other_digests_than_those_deployed_are_not_loaded(bundle: Path, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", seed=7)
    digests = f"{'0' * 64},{load_bundle(bundle).sha256}"
    with RunningServer(tmp_path / "log", SAGEMAKER_MULTI_MODEL="true", HLS_MODEL_SHA256=digests) as server:
        server.wait_ready()
        assert load(server, "good", bundle).status == 200
        refused = load(server, "changed", other)
    assert (refused.status, refused.json()["error"]) == (422, "bad_model")
    assert "HLS_MODEL_SHA256" in refused.json()["detail"]


def test_a_loaded_name_is_a_409(platform: RunningServer, bundle: Path) -> None:
    assert load(platform, "burn", bundle).status == 200
    assert load(platform, "burn", bundle).status == 409


def test_short_memory_is_a_507_until_a_model_is_unloaded(platform: RunningServer, bundle: Path) -> None:
    assert load(platform, "one", bundle).status == 200
    assert load(platform, "two", bundle).status == 200
    refused = load(platform, "three", bundle)
    assert (refused.status, refused.json()["error"]) == (507, "memory_short")
    assert platform.client.request("DELETE", "/models/one").status == 200
    assert load(platform, "three", bundle).status == 200
    assert platform.client.invoke_model("three", scene_tiff(64)).status == 200


def test_the_list_comes_in_pages(platform: RunningServer, bundle: Path) -> None:
    for name in ("b", "a"):
        assert load(platform, name, bundle).status == 200
    first = platform.client.request("GET", "/models", params={"limit": 1}).json()
    assert [model["modelName"] for model in first["models"]] == ["a"]
    second = platform.client.request("GET", "/models", params={"limit": 1, "next_page_token": first["nextPageToken"]}).json()
    assert second == {"models": [{"modelName": "b", "modelUrl": str(bundle)}]}
    assert platform.client.request("GET", "/models", params={"limit": 0}).status == 422


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model_name": "a"}', b'{"model_name": "a/b", "url": "/x"}'])
def test_a_malformed_load_is_refused(platform: RunningServer, body: bytes) -> None:
    reply = platform.client.request("POST", "/models", content=body)
    assert reply.status in (400, 422)
    assert set(reply.json()) == {"error", "detail"}


def test_a_folder_without_a_model_is_a_422_and_the_name_stays_free(platform: RunningServer, bundle: Path, tmp_path: Path) -> None:
    reply = load(platform, "burn", tmp_path)
    assert reply.status == 422
    assert str(tmp_path) not in reply.json()["detail"]
    assert load(platform, "burn", bundle).status == 200


def test_single_model_invocations_are_not_part_of_a_multi_model_server(platform: RunningServer) -> None:
    assert platform.client.invoke(scene_tiff(64)).status == 404
