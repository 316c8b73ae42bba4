"""POST /invocations of a real server: every request format, every reply format, and the same answer as in process."""

from __future__ import annotations

import base64
import io
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely

from hls_foundry.chips.reader import ChipReader
from hls_foundry.endpoints.client import Reply
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.predictor import Predictor
from hls_foundry.models.bundle import load_bundle
from tests.serving.conftest import ABSENT_BUCKET, BUCKET, MAX_BODY_MB, Aws
from tests.serving.running import RunningServer
from tests.serving.scenes import npy, reflectance, scene_tiff

TIFF, JSON, NPY, GEOJSON, PNG = "image/tiff", "application/json", "application/x-npy", "application/geo+json", "image/png"
SIZE, WIDTH = 250, 301  # larger than a tile, and not a multiple of anything


@pytest.fixture(scope="module")
def expected(bundle: Path) -> np.ndarray:
    """float32 (2, SIZE, WIDTH): the in-process prediction."""
    with ChipReader(scene_tiff(SIZE, width=WIDTH)) as reader:
        return Predictor(load_bundle(bundle)).probabilities(reader.read())


def send(server: RunningServer, request: str, reply: str, **options: object) -> Reply:
    tiff = scene_tiff(SIZE, width=WIDTH)
    if request == TIFF:
        return server.client.invoke(tiff, content_type=TIFF, accept=reply, attributes=";".join(f"{k}={v}" for k, v in options.items()))
    if request == JSON:
        return server.client.invoke(
            json.dumps({"image": base64.b64encode(tiff).decode(), **options}).encode(), content_type=JSON, accept=reply
        )
    with ChipReader(tiff) as reader:
        place = {"crs": reader.grid.crs.to_string(), "transform": ",".join(str(v) for v in tuple(reader.grid.transform)[:6])}
        attributes = ";".join(f"{k}={v}" for k, v in (place | options).items())
        return server.client.invoke(npy(reader.read()), content_type=NPY, accept=reply, attributes=attributes)


@pytest.mark.parametrize(("request_format", "reply_format"), list(product((TIFF, JSON, NPY), (GEOJSON, TIFF, NPY, PNG))))
def test_each_request_format_gets_each_reply_format(
    server: RunningServer, expected: np.ndarray, request_format: str, reply_format: str
) -> None:
    reply = send(server, request_format, reply_format)
    assert reply.status == 200, reply.body
    assert reply.media_type == reply_format
    mask = mask_from_probabilities(expected)
    assert 0.1 < (mask == 1).mean() < 0.9, "the tiny model must predict both classes for this test to mean something"
    if reply_format == GEOJSON:
        features = reply.json()["features"]
        shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
        assert all(shape.is_valid for shape in shapes)
        assert sum(feature["properties"]["area_ha"] for feature in features) == pytest.approx((mask == 1).sum() * 0.09, rel=0.02)
        assert {feature["properties"]["class"] for feature in features} == {"burn scar"}
        assert all(0 <= feature["properties"]["mean_probability"] <= 1 for feature in features)
        left, bottom, right, top = shapely.total_bounds(shapes)
        assert -122 < left < right < -121
        assert 39.8 < bottom < top < 40
    elif reply_format == NPY:
        got = np.load(io.BytesIO(reply.body), allow_pickle=False)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
    else:
        with rasterio.MemoryFile(reply.body) as memory, memory.open() as dataset, ChipReader(scene_tiff(SIZE, width=WIDTH)) as reader:
            assert (dataset.width, dataset.height) == (WIDTH, SIZE)
            if reply_format == TIFF:
                assert (dataset.crs, dataset.transform) == (reader.grid.crs, reader.grid.transform)
                assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                np.testing.assert_array_equal(dataset.read(1), np.where(mask < 0, dataset.nodata, mask))
            else:
                assert dataset.driver == "PNG"


@pytest.mark.parametrize("request_format", [TIFF, JSON, NPY])
def test_a_threshold_cuts_where_it_says(server: RunningServer, expected: np.ndarray, request_format: str) -> None:
    reply = send(server, request_format, TIFF, threshold=0.7)
    with rasterio.MemoryFile(reply.body) as memory, memory.open() as dataset:
        mask = mask_from_probabilities(expected, 0.7)
        np.testing.assert_array_equal(dataset.read(1), np.where(mask < 0, dataset.nodata, mask))


def test_an_image_without_a_place_gives_polygons_in_pixels(server: RunningServer) -> None:
    document = server.client.invoke(scene_tiff(96, crs=None)).json()
    assert document["coordinate_space"].startswith("pixels")
    left, top, right, bottom = shapely.total_bounds([shapely.geometry.shape(feature["geometry"]) for feature in document["features"]])
    assert 0 <= left < right <= 96
    assert 0 <= top < bottom <= 96
    assert all(feature["properties"]["area_ha"] is None for feature in document["features"])


def test_a_scene_without_any_data_has_no_polygons_and_is_no_error(server: RunningServer) -> None:
    reply = server.client.invoke(npy(np.full((6, 80, 80), np.nan, np.float32)), content_type=NPY)
    assert (reply.status, reply.json()["features"]) == (200, [])


def test_the_reply_names_the_model_and_the_request(server: RunningServer, bundle: Path) -> None:
    reply = server.client.request(
        "POST", "/invocations", content=scene_tiff(64), headers={"Content-Type": TIFF, "X-Request-Id": "my-request-7", "Accept": "*/*"}
    )
    assert reply.headers["x-request-id"] == "my-request-7"
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == f"model_sha256={load_bundle(bundle).sha256}"
    lines = [line for line in server.log.read_text().splitlines() if "request=my-request-7" in line]
    assert len(lines) == 1
    assert "POST /invocations status=200" in lines[0]


def test_a_request_id_cannot_write_lines_into_the_log(server: RunningServer) -> None:
    reply = server.client.request("GET", "/models", headers={"X-Request-Id": "a b=c"})
    assert reply.headers["x-request-id"] != "a b=c"


def test_an_untyped_body_is_known_by_its_first_bytes(server: RunningServer) -> None:
    for body in (scene_tiff(64), npy(reflectance(64))):
        assert server.client.invoke(body, content_type="application/octet-stream").status == 200


def test_ping_is_empty_and_200(server: RunningServer) -> None:
    reply = server.client.request("GET", "/ping")
    assert (reply.status, reply.body) == (200, b"")


def test_what_is_not_served_is_an_error_of_the_same_shape(server: RunningServer) -> None:
    for method, path, status in (("GET", "/", 404), ("GET", "/invocations", 405), ("GET", "/models", 404), ("POST", "/models", 404)):
        reply = server.client.request(method, path)
        assert reply.status == status
        assert set(reply.json()) == {"error", "detail"}


def test_the_options_document_themselves(server: RunningServer) -> None:
    document = server.client.request("GET", "/openapi.json").json()
    operation = document["paths"]["/invocations"]["post"]
    assert set(operation["requestBody"]["content"]) == {TIFF, JSON, NPY}
    body = operation["requestBody"]["content"][JSON]["schema"]["properties"]
    assert {"image", "bands", "scale", "nodata", "threshold", "acquired", "location"} == set(body)
    for name, option in body.items():
        assert option.get("description"), name
    assert {"200", "400", "413", "415", "422", "500", "503"} <= set(operation["responses"])


# -- images in S3


def test_an_s3_image_is_answered_like_the_image_itself(server: RunningServer, aws: Aws) -> None:
    tiff = scene_tiff(120)
    aws.s3.put_object(Bucket=BUCKET, Key="a folder/scene 1.tif", Body=tiff)
    reply = server.client.invoke(json.dumps({"image": f"s3://{BUCKET}/a folder/scene 1.tif"}).encode(), content_type=JSON, accept=TIFF)
    assert reply.status == 200, reply.body
    assert reply.body == server.client.invoke(tiff, accept=TIFF).body


@pytest.mark.parametrize(("uri", "word"), [(f"s3://{BUCKET}/nothing.tif", "nothing.tif"), (f"s3://{ABSENT_BUCKET}/x.tif", ABSENT_BUCKET)])
def test_an_s3_image_that_does_not_exist_is_a_422_that_names_it(server: RunningServer, uri: str, word: str) -> None:
    reply = server.client.invoke(json.dumps({"image": uri}).encode(), content_type=JSON)
    assert (reply.status, reply.json()["error"]) == (422, "no_such_image")
    assert word in reply.json()["detail"]


def test_an_s3_image_over_the_limit_is_not_downloaded(server: RunningServer, aws: Aws) -> None:
    aws.s3.put_object(Bucket=BUCKET, Key="large.tif", Body=b"II*\0" + bytes(MAX_BODY_MB * 2**20))
    reply = server.client.invoke(json.dumps({"image": f"s3://{BUCKET}/large.tif"}).encode(), content_type=JSON)
    assert (reply.status, reply.json()["error"]) == (413, "image_too_large")
