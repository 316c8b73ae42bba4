"""Real imagery through a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio
import shapely

from tests.serving.running import RunningServer

pytestmark = pytest.mark.real_data


def test_a_sentinel_2_chip_of_13_bands_is_answered_in_its_place(server: RunningServer, shared_data: Path) -> None:
    path = shared_data / "sen1floods11/S2Hand/Spain_7370579_S2Hand.tif"
    with rasterio.open(path) as chip:
        grid, bounds = (chip.crs, chip.transform, chip.shape), chip.bounds
    mask = server.client.invoke(path.read_bytes(), accept="image/tiff")
    assert mask.status == 200, mask.body
    with rasterio.MemoryFile(mask.body) as memory, memory.open() as dataset:
        assert (dataset.crs, dataset.transform, dataset.shape) == grid
    document = server.client.invoke(path.read_bytes()).json()
    left, bottom, right, top = shapely.total_bounds([shapely.geometry.shape(feature["geometry"]) for feature in document["features"]])
    assert bounds.left - 1e-6 <= left < right <= bounds.right + 1e-6
    assert bounds.bottom - 1e-6 <= bottom < top <= bounds.top + 1e-6


def test_an_hls_chip_of_10_bands_needs_to_be_told_which(server: RunningServer, shared_data: Path) -> None:
    body = (shared_data / "hls/hls_l30_10band_224.tif").read_bytes()
    refused = server.client.invoke(body)
    assert (refused.status, "option bands" in refused.json()["detail"]) == (422, True)
    assert server.client.invoke(body, attributes="bands=2,3,4,5,6,7;scale=0.0001").status == 200


def test_a_whole_granule_of_one_band_is_refused(server: RunningServer, shared_data: Path) -> None:
    (path,) = (shared_data / "hls").glob("*Fmask.tif")
    reply = server.client.invoke(path.read_bytes())
    assert (reply.status, reply.json()["error"]) == (422, "bad_image")
