"""A scene is one file or an HLS granule, in this process or by a local endpoint (by SageMaker: sagemaker/test_invoker_rehearsed.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from hls_foundry.endpoints.local import LocalEndpoints
from hls_foundry.endpoints.predict import PredictRequest, predict_file
from hls_foundry.errors import ChipError, ConfigError, EndpointError
from hls_foundry.models.bundle import load_bundle
from tests.serving.bundles import tiny_bundle
from tests.serving.scenes import scene_tiff

SIZE = 200
NAME = "HLS.S30.T10TGS.2018285T190331.v2.0"
S30 = ("B02", "B03", "B04", "B8A", "B11", "B12")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.tif"
    path.write_bytes(scene_tiff(SIZE))
    return path


@pytest.fixture
def granule(stack: Path) -> Path:
    """The same scene, one file a band."""
    folder = stack.parent / "granule"
    folder.mkdir()
    with rasterio.open(stack) as dataset:
        profile, bands = {**dataset.profile, "count": 1}, dataset.read()
    for band, values in zip(S30, bands, strict=True):
        with rasterio.open(folder / f"{NAME}.{band}.tif", "w", **profile) as dataset:
            dataset.write(values, 1)
    return folder


def mask_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


def test_a_granule_gives_the_mask_of_its_stack(bundle: Path, stack: Path, granule: Path, tmp_path: Path) -> None:
    predict_file(PredictRequest(stack), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    predict_file(PredictRequest(granule), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    files = tuple(sorted(granule.glob("*.B*.tif")))
    predict_file(PredictRequest(files), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    of_stack, of_folder, of_files = (folder / f"{NAME}_prediction.tif" for folder in (tmp_path, tmp_path, granule))
    assert of_stack == of_folder, "beside the scene, whichever form it has"
    np.testing.assert_array_equal(mask_of(of_files), mask_of(of_stack))
    assert set(np.unique(mask_of(of_stack))) == {0, 1, 255}


def test_a_prediction_beside_the_band_files_is_no_band(bundle: Path, granule: Path, tmp_path: Path) -> None:
    for _ in range(2):
        out = granule / f"{NAME}_prediction.tif"
        predict_file(PredictRequest(granule, out=out), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)


def test_a_local_endpoint_is_asked_for_a_granule(bundle: Path, granule: Path, stack: Path, tmp_path: Path) -> None:
    endpoints = LocalEndpoints(tmp_path / "endpoints")
    endpoints.deploy("scars", bundle, sha256=load_bundle(bundle).sha256, model_version="1", environment={"OMP_NUM_THREADS": "1"})
    try:
        line = predict_file(
            PredictRequest(granule, out=tmp_path / "a.tif", threshold=0.4), tmp_path, task="burn_scars", bundle=None, endpoint="scars"
        )
        assert line == f"{tmp_path / 'a.tif'}: mask from endpoint 'scars'"
        predict_file(
            PredictRequest(stack, out=tmp_path / "b.tif", threshold=0.4), tmp_path, task="burn_scars", bundle=bundle, endpoint=None
        )
        np.testing.assert_array_equal(mask_of(tmp_path / "a.tif"), mask_of(tmp_path / "b.tif"))
        chip = tmp_path / "one_band.tif"
        chip.write_bytes((granule / f"{NAME}.B02.tif").read_bytes())
        with pytest.raises(EndpointError, match=r"endpoint 'scars' refused .*one_band\.tif \(422\): bad_image: "):
            predict_file(PredictRequest(chip, out=tmp_path / "c.tif"), tmp_path, task="burn_scars", bundle=None, endpoint="scars")
        assert not (tmp_path / "c.tif").exists()
    finally:
        endpoints.delete("scars")


def test_what_is_no_scene_is_one_line(bundle: Path, granule: Path, tmp_path: Path) -> None:
    with pytest.raises(ChipError, match="does not exist"):
        predict_file(PredictRequest(tmp_path / "x.tif"), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    with pytest.raises(ConfigError, match="--bands is for a stack"):
        predict_file(PredictRequest(granule, bands="1,2,3,4,5,6"), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    (granule / f"{NAME}.B12.tif").unlink()
    with pytest.raises(ChipError, match="lacks B12"):
        predict_file(PredictRequest(granule), tmp_path, task="burn_scars", bundle=bundle, endpoint=None)
    assert list(tmp_path.glob("*prediction*")) == []
