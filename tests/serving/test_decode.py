"""Bodies become scenes, and what they claim is not believed."""

from __future__ import annotations

import base64
import json
import tracemalloc
from datetime import date

import numpy as np
import pytest

from hls_foundry.errors import RequestError
from hls_foundry.serving.decode import Decoded, decode
from hls_foundry.serving.negotiation import RequestFormat
from hls_foundry.serving.s3 import S3Images
from hls_foundry.serving.settings import ServingSettings
from tests.serving.scenes import npy, reflectance, scene_tiff

MAX_PIXELS = 4096 * 4096


def decoded(kind: RequestFormat, body: bytes, attributes: str | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    images = S3Images(ServingSettings.from_environment({"HLS_S3_ALLOW": "scenes"}))
    return decode(kind, body, attributes, images=images, max_pixels=max_pixels)


def refused(kind: RequestFormat, body: bytes, attributes: str | None = None, max_pixels: int = MAX_PIXELS) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        decoded(kind, body, attributes, max_pixels)
    return refusal.value


def test_a_tiff_and_its_base64_and_its_array_are_one_scene() -> None:
    tiff = scene_tiff(80)
    one = decoded(RequestFormat.TIFF, tiff, "threshold=0.4")
    two = decoded(RequestFormat.JSON, json.dumps({"image": base64.b64encode(tiff).decode(), "threshold": 0.4}).encode())
    place = f"crs={one.scene.grid.crs};transform={','.join(str(value) for value in tuple(one.scene.grid.transform)[:6])}"
    three = decoded(RequestFormat.NPY, npy(one.scene.pixels), f"{place};threshold=0.4")
    for other in (two, three):
        np.testing.assert_array_equal(other.scene.pixels, one.scene.pixels)
        assert other.scene.grid == one.scene.grid
        assert other.threshold == one.threshold == 0.4
    assert np.isnan(one.scene.pixels[:, :8, :8]).all()


def test_options_reach_the_reader() -> None:
    thirteen = scene_tiff(64)
    scene = decoded(
        RequestFormat.TIFF, thirteen, "bands=6,5,4,3,2,1;scale=0.00005;acquired=2018-10-12;location=40.5,-122.25;nodata=0"
    ).scene
    plain = decoded(RequestFormat.TIFF, thirteen).scene
    known = np.isfinite(plain.pixels[0])
    np.testing.assert_allclose(scene.pixels[:, known], plain.pixels[::-1][:, known] / 2, rtol=1e-5)
    assert scene.acquired == date(2018, 10, 12)
    assert scene.location == (40.5, -122.25)
    assert not np.isnan(scene.pixels[:, :8, :8]).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.dtype(">f4"), np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_number_type_and_order_are_read(dtype: np.dtype, order: str) -> None:
    pixels = np.arange(6 * 64 * 70).reshape(6, 64, 70) % 7
    scene = decoded(RequestFormat.NPY, npy(np.asarray(pixels, dtype, order=order))).scene
    assert scene.pixels.dtype == np.float32
    np.testing.assert_array_equal(scene.pixels, pixels)
    assert scene.grid.crs is None


def test_a_pixel_with_one_band_missing_has_no_data() -> None:
    pixels = reflectance(64)
    pixels[3, 20, 30] = np.inf
    assert np.isnan(decoded(RequestFormat.NPY, npy(pixels)).scene.pixels[:, 20, 30]).all()


@pytest.mark.parametrize(
    ("attributes", "status", "word"),
    [
        ("threshold", 400, "key=value"),
        ("threshold=1.5", 422, "threshold"),
        ("threshold=nan", 422, "threshold"),
        ("treshold=0.5", 422, "treshold"),
        ("bands=1,2,3", 422, "bands"),
        ("bands=1,2,3,4,5,99", 422, "option bands"),
        ("scale=-1", 422, "scale"),
        ("location=91,0", 422, "location"),
        ("acquired=yesterday", 422, "acquired"),
        ("crs=EPSG:32610", 422, "crs"),
    ],
)
def test_bad_options_are_named(attributes: str, status: int, word: str) -> None:
    error = refused(RequestFormat.TIFF, scene_tiff(64), attributes)
    assert (error.status, word in error.detail) == (status, True), error.detail
    assert "\n" not in error.detail


@pytest.mark.parametrize(
    ("attributes", "word"),
    [("crs=EPSG:32610", "transform"), ("crs=nowhere;transform=30,0,0,0,-30,0", "crs"), ("bands=1,2,3,4,5,6", "bands"),
     ("crs=EPSG:32610;transform=0,0,0,0,0,0", "transform")],
)  # fmt: skip
def test_an_array_needs_its_whole_place_and_nothing_of_a_file(attributes: str, word: str) -> None:
    error = refused(RequestFormat.NPY, npy(reflectance(64)), attributes)
    assert (error.status, word in error.detail) == (422, True), error.detail


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    encoded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(encoded).to_bytes(2 if version == 1 else 4, "little") + encoded + data


@pytest.mark.parametrize(
    "body",
    [
        b"\x93NUMPY",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (6, 2000, 2000), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (6, 64, 64), }", b"cos\nsystem\n(S'true'\ntR."),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6, 64, 64), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (6, -64, 64), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (6, True, 64), }"),
        header("__import__('os').system('true')"),
        header("(" * 110),
        header("{}"),
        header("[1]"),
        npy(np.zeros((5, 64, 64), np.float32)),
        npy(np.zeros((6, 64), np.float32)),
        npy(np.zeros((6, 64, 64), "S1")),
        npy(np.zeros((6, 64, 64), np.complex64)),
        npy(np.zeros((6, 64, 64), np.float32))[:-1],
        npy(np.zeros((6, 64, 64), np.float32)) + b"x",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 64,
    ],
)
def test_a_malformed_array_is_refused_before_anything_of_its_size_is_allocated(body: bytes) -> None:
    tracemalloc.start()
    error = refused(RequestFormat.NPY, body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.status == 422, error.detail
    assert peak < 2_000_000


def test_more_pixels_than_allowed_are_a_413_in_every_format() -> None:
    tiff = scene_tiff(96)
    assert refused(RequestFormat.TIFF, tiff, max_pixels=64 * 64).status == 413
    assert refused(RequestFormat.JSON, json.dumps({"image": base64.b64encode(tiff).decode()}).encode(), max_pixels=64 * 64).status == 413
    assert refused(RequestFormat.NPY, npy(reflectance(96)), max_pixels=64 * 64).status == 413


@pytest.mark.parametrize(
    "image",
    ["file:///etc/passwd", "http://127.0.0.1/x.tif", "https://10.0.0.1/x.tif", "HTTP://[::1]/", "gs://bucket/x.tif", "s3://other/x.tif",
     "s3://", "s3://scenes", "s3://scenes/", "s3:///etc/passwd", "s3://scenes@169.254.169.254/x", "/etc/passwd", "../../etc/passwd",
     "/vsicurl/http://127.0.0.1/", "zip:///etc/x.zip!a.tif", "data:image/tiff;base64,AAAA", "", "AAAA", "é"],
)  # fmt: skip
def test_images_from_anywhere_but_an_allowed_bucket_are_refused(image: str) -> None:
    error = refused(RequestFormat.JSON, json.dumps({"image": image}).encode())
    assert error.status == 422, error.detail


def test_without_allowed_buckets_the_refusal_says_so() -> None:
    with pytest.raises(RequestError, match="HLS_S3_ALLOW") as refusal:
        S3Images(ServingSettings.from_environment({})).fetch("s3://scenes/x.tif")
    assert refusal.value.status == 422


def test_a_file_that_points_elsewhere_is_not_followed() -> None:
    vrt = b'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    assert refused(RequestFormat.TIFF, vrt).status == 422


@pytest.mark.parametrize("body", [b"{", b'{"image": "AAAA"', b"\xff\xfe", b"[" * 100_000, b"nul", b""])
def test_what_is_not_json_is_a_400(body: bytes) -> None:
    assert refused(RequestFormat.JSON, body).status == 400


@pytest.mark.parametrize(
    "body", [b"[]", b"3", b'{"threshold": 0.5}', b'{"image": 3}', b'{"image": "AAAA", "more": 1}', b'{"image": "AAAA", "bands": [1]}']
)
def test_json_that_is_no_request_is_a_422(body: bytes) -> None:
    assert refused(RequestFormat.JSON, body).status == 422
