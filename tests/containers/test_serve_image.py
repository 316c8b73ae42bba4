"""The serving image, built and run for real: without rights, read-only, with one model and with several. `make test-images` runs these."""

from __future__ import annotations

import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch

from containers.build import version
from hls_foundry.config import DataConfig
from hls_foundry.endpoints.client import EndpointClient, Reply
from hls_foundry.endpoints.inference_test import run_inference_test
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.predictor import Predictor
from hls_foundry.models.bundle import load_bundle, pack_bundle
from tests.containers.running import Image, mounted, readable
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import npy, reflectance, scene_tiff

READY_S, SIZE = 6.0, 1.5e9

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]  # the first build fetches torch


def test_the_image_is_small_unprivileged_and_says_what_it_is(image: Image) -> None:
    assert int(image.tells("{{.Size}}")) < SIZE
    config = json.loads(image.tells("{{json .Config}}"))
    assert config["User"] not in ("", "0", "root")
    assert config["Cmd"] == ["serve"]
    labels = config["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["org.opencontainers.image.version"] == version()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"org.opencontainers.image.source", "org.opencontainers.image.revision"} <= labels.keys()
    if image.engine == "podman":
        assert image.tells("{{.ManifestType}}") == "application/vnd.docker.distribution.manifest.v2+json"  # SageMaker takes no OCI manifest


def test_it_answers_as_this_process_does_with_nothing_to_write_to_but_tmp(image: Image, bundle: Path) -> None:
    pixels = reflectance(224)
    with image.run(*mounted(bundle), "--tmpfs", "/tmp") as container:
        assert container.wait_ready() < READY_S
        reply = container.client.invoke(npy(pixels), content_type="application/x-npy", accept="application/x-npy")
        polygons = container.client.invoke(scene_tiff(224))
        health = json.loads(image.tells("{{json .Config.Healthcheck.Test}}"))[1:]
        assert container.inside(*health).returncode == 0
        assert container.inside("touch", "/opt/ml/new").returncode != 0
        assert container.inside("id", "-u").stdout.strip() not in ("", "0")
    assert (reply.status, polygons.status) == (200, 200)
    assert polygons.json()["features"]
    served = np.load(io.BytesIO(reply.body))
    torch.set_num_threads(1)
    here = Predictor(load_bundle(bundle)).probabilities(pixels)
    assert np.mean(mask_from_probabilities(served) == mask_from_probabilities(here)) >= 0.9999


def test_an_archive_is_unpacked_below_tmp(image: Image, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    pack_bundle(bundle, tmp_path / "model/model.tar.gz")
    with image.run(*mounted(readable(tmp_path / "model")), "--tmpfs", "/tmp") as container:
        container.wait_ready()


def test_it_holds_no_installer_compiler_or_training_code(image: Image, bundle: Path) -> None:
    absent = ["pip", "zenml", "accelerate", "pandas", "hls_foundry.training", "hls_foundry.endpoints", "hls_foundry.validation", "stacks"]
    look = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    with image.run(*mounted(bundle)) as container:
        assert container.inside("python", "-c", look).stdout.strip() == "[]"
        assert container.inside("sh", "-c", "command -v gcc cc g++ make").stdout == ""
        assert container.inside("find", "/opt", "-name", "*.py", "-newermt", "1980-01-02", "-print", "-quit").stdout == ""


def test_it_is_healthy_without_network_with_little_memory_and_no_tmp(image: Image, bundle: Path) -> None:
    health = json.loads(image.tells("{{json .Config.Healthcheck.Test}}"))[1:]
    no_tmp = ("--read-only-tmpfs=false",) if image.engine == "podman" else ()
    with image.run(*mounted(bundle), *no_tmp, "--memory", "700m", network=False) as container:
        deadline = time.monotonic() + 30
        while container.inside(*health).returncode != 0:
            assert container.is_running(), container.log()
            assert time.monotonic() < deadline, container.log()


def test_sigterm_drains_the_request_in_flight(image: Image, bundle: Path) -> None:
    scene = scene_tiff(512)
    with image.run(*mounted(bundle), "--tmpfs", "/tmp") as container:
        container.wait_ready()
        connection = HTTPConnection("127.0.0.1", container.port, timeout=60)
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Type", "image/tiff")
        connection.putheader("Content-Length", str(len(scene)))
        connection.endheaders(scene[:1000])
        time.sleep(0.5)  # for the server to take it
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(container.stop)
            while "draining" not in container.log():
                time.sleep(0.05)
            connection.send(scene[1000:])
            assert connection.getresponse().status == 200, container.log()
            connection.close()
            assert code.result() == 0, container.log()


def test_sigterm_during_the_start_ends_it_at_once(image: Image, bundle: Path) -> None:
    with image.run(*mounted(bundle)) as container:
        time.sleep(0.3)
        asked = time.monotonic()
        container.stop(20)
        assert time.monotonic() - asked < 10


def test_a_model_that_cannot_be_served_ends_the_container_with_one_line(image: Image, bundle: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(bundle, newer)
    manifest = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    shut = tmp_path / "shut"
    shutil.copytree(bundle, shut)
    (shut / "model.safetensors").chmod(0)
    for options, expected in (((), "holds no model"), (mounted(newer), "schema version 99"), (mounted(shut), "Permission denied")):
        with image.run(*options) as container:
            assert container.wait_end() != 0
            log = container.log()
        assert expected in log
        assert "Traceback" not in log


def test_several_models_come_and_go_on_the_port_that_the_platform_names(image: Image, bundle: Path) -> None:
    platform = ("--env", "SAGEMAKER_MULTI_MODEL=true", "--env", "SAGEMAKER_BIND_TO_PORT=8123", "--tmpfs", "/tmp")
    with image.run(*mounted(bundle, "/opt/ml/models/a/model"), *platform, port=8123) as container:
        assert container.wait_ready() < READY_S
        url = f"http://127.0.0.1:{container.port}/models"
        assert httpx.post(url, json={"model_name": "a", "url": "/opt/ml/models/a/model"}, timeout=60).status_code == 200
        assert [entry["modelName"] for entry in httpx.get(url).json()["models"]] == ["a"]
        assert httpx.post(f"{url}/a/invoke", content=scene_tiff(), headers={"Content-Type": "image/tiff"}, timeout=60).status_code == 200
        assert httpx.delete(f"{url}/a").status_code == 200
        assert httpx.get(f"{url}/a").status_code == 404


@dataclass
class OneOf:
    """One model of several, as the inference test calls it."""

    client: EndpointClient
    model: str

    def invoke(self, body: bytes, *, content_type: str, accept: str = "application/geo+json", attributes: str = "") -> Reply:
        return self.client.invoke_model(self.model, body, content_type=content_type, accept=accept, attributes=attributes)


def test_two_models_pass_the_whole_inference_test_and_a_third_is_too_large_for_the_memory(
    image: Image, bundle: Path, tmp_path: Path
) -> None:
    models, control = tmp_path / "models", tmp_path / "control"
    control.mkdir()
    shutil.copytree(bundle, models / "a/model")
    tiny_bundle(models / "b/model", seed=4)
    shutil.copytree(bundle, models / "large/model")
    with (models / "large/model/model.safetensors").open("r+b") as weights:
        weights.truncate(2 * 2**30)  # nothing behind it
    for index in range(3):
        (tmp_path / f"{index}.tif").write_bytes(scene_tiff(96 + 32 * index, index))
    chips = pd.DataFrame([{"chip": str(index), "image": f"{index}.tif", "mask": ""} for index in range(3)])
    options = (*mounted(readable(models), "/opt/ml/models"), "--env", "SAGEMAKER_MULTI_MODEL=true", "--tmpfs", "/tmp", "--memory", "900m")
    with image.run(*options, network=False, control=control) as container:
        container.wait_ready()
        for name, status in (("a", 200), ("b", 200), ("large", 507)):
            order = {"model_name": name, "url": f"/opt/ml/models/{name}/model"}
            reply = container.client.request("POST", "/models", json=order)
            assert reply.status == status, reply.body
        for name in ("a", "b"):
            data = DataConfig(source="test")
            report = run_inference_test(OneOf(container.client, name), models / name / "model", chips, tmp_path, data=data)
            assert report.problems() == []
            assert report.agreement >= 0.9999
            assert len(report.bad_requests) > 20
        assert container.command("inspect", "--format", "{{.HostConfig.NetworkMode}}", container.name) == "none"
