"""Map one scene to a file: in this process with a bundle, or by asking an endpoint on this machine or on SageMaker.

A scene is one GeoTIFF, or the band files of an HLS granule (or their folder), which are stacked into a temporary file first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hls_foundry.chips.granule import find_granule, stack_granule
from hls_foundry.chips.reader import ChipReader
from hls_foundry.endpoints.client import EndpointClient, Reply, format_attributes
from hls_foundry.endpoints.local import LocalEndpoints
from hls_foundry.endpoints.settings import AwsSettings
from hls_foundry.errors import BundleError, ChipError, ConfigError, EndpointError
from hls_foundry.progress import progress_bar

SUFFIXES = (".tif", ".tiff", ".geojson", ".gpkg")


@dataclass(frozen=True)
class PredictRequest:
    """A scene, how its file is read, and where the answer goes.

    `scene`: a GeoTIFF, the folder of an HLS granule, or its band files. `bands`: six numbers or names, comma-separated.
    """

    scene: Path | tuple[Path, ...]
    out: Path | None = None
    bands: str | None = None
    scale: float | None = None
    threshold: float | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.scene,) if isinstance(self.scene, Path) else self.scene

    @property
    def is_granule(self) -> bool:
        """Whether the scene has to be stacked first."""
        return len(self.paths) > 1 or self.paths[0].is_dir()

    @property
    def target(self) -> Path:
        """Where the answer goes. Raises ConfigError for a suffix that says no format, ChipError for a granule that is none."""
        first = self.paths[0]
        name = find_granule(self.paths).name if self.is_granule else first.stem
        target = self.out or first.with_name(f"{name}_prediction.tif")
        if target.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out {target}: '{target.suffix}' says no format; use .tif, .geojson or .gpkg")
        return target

    def band_list(self) -> tuple[int | str, ...] | None:
        """`bands` as the reader takes it."""
        if self.bands is None:
            return None
        return tuple(int(part) if part.strip().isdigit() else part.strip() for part in self.bands.split(","))


def predict_file(
    request: PredictRequest, home: Path, *, task: str, bundle: Path | None, endpoint: str | None, aws: AwsSettings | None = None
) -> str:
    """Write the prediction and return one line that says what was found and where it lies.

    `endpoint`: one of this machine, else a SageMaker endpoint, asked as `aws` says (none: by the environment); `task` chooses among the
    models of a multi_model one. Without `endpoint`, the bundle given, else the one that the local endpoint of `task` serves, predicts in
    this process. Raises ChipError, BundleError, EndpointError or ConfigError, each one line; no half-written file stays.
    """
    target = request.target
    for path in request.paths:
        if not path.exists():
            raise ChipError(f"{path} does not exist: give an existing GeoTIFF, or the folder of an HLS granule")
    endpoints = LocalEndpoints(home / "endpoints")
    local = {known.name: known for known in endpoints.list()}
    if endpoint is None and bundle is None:
        if task not in local:
            raise BundleError(f"no bundle to predict with: give --bundle FOLDER, or deploy one first (python run.py --task {task})")
        bundle = Path(local[task].bundle)
    with _one_file(request) as scene:
        if endpoint is None:
            assert bundle is not None
            return _in_process(request, scene, target, bundle)
        if endpoint in local:
            return _by_endpoint(request, target, endpoint, _ask_local(scene, local[endpoint].url))
        return _by_endpoint(request, target, endpoint, _ask_sagemaker(scene, endpoint, task, aws or AwsSettings(), sorted(local)))


@contextmanager
def _one_file(request: PredictRequest) -> Iterator[Path]:
    """The scene as one GeoTIFF."""
    if not request.is_granule:
        yield request.paths[0]
        return
    if request.bands is not None:
        raise ConfigError("--bands is for a stack: the bands of a granule are known by the names of its files")
    granule = find_granule(request.paths)
    with tempfile.TemporaryDirectory(prefix="hls-granule-") as folder:
        stacked = Path(folder) / f"{granule.name}.tif"
        with progress_bar("stacking") as progress:
            stack_granule(granule, stacked, progress)
        yield stacked


def _in_process(request: PredictRequest, scene: Path, target: Path, bundle: Path) -> str:
    from hls_foundry.inference.predictor import Predictor
    from hls_foundry.models.bundle import load_bundle

    if not bundle.exists():
        raise BundleError(f"no bundle at {bundle}: give a bundle folder or a model.tar.gz")
    options: dict[str, Any] = {"bands": request.band_list() or "auto", "scale": request.scale or "auto"}
    with (
        _unpacked(bundle) as folder,
        ChipReader(scene, **options) as reader,
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
    ):
        loaded = load_bundle(folder)
        vector = target.suffix.lower() in (".geojson", ".gpkg")
        mask_path = Path(scratch) / "mask.tif" if vector else target
        likely = Path(scratch) / "probabilities.tif" if vector else None
        with progress_bar("tiles") as progress:
            predictor = Predictor(loaded)
            found = predictor.predict_scene(reader, mask_path, threshold=request.threshold, probabilities=likely, progress=progress)
        if not vector:
            pixels = reader.grid.width * reader.grid.height
            return f"{target}: {found.class_pixels[1]:,} of {pixels:,} pixels are {loaded.manifest.classes[1]}"
        features = _features(mask_path, Path(scratch) / "probabilities.tif", reader, loaded.manifest.classes)
    return _write(features, target)


def _features(mask_path: Path, likely: Path, reader: ChipReader, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    import numpy as np
    import rasterio

    from hls_foundry.inference.polygons import polygons

    with rasterio.open(mask_path) as masks, rasterio.open(likely) as stored:
        mask = masks.read(1).astype(np.int16)
        mask[mask == masks.nodata] = -1
        probabilities = stored.read().astype(np.float32) * stored.scales[0]
    background = 1 - probabilities.sum(axis=0, keepdims=True)
    return polygons(mask, np.concatenate([background, probabilities]), reader.grid, classes)


Ask = Callable[[str, str], Reply]
"""Sends the scene, asking for a media type with options, and returns the reply."""


def _ask_local(scene: Path, url: str) -> Ask:
    def ask(accept: str, attributes: str) -> Reply:
        with EndpointClient(url) as client:
            return client.invoke(scene.read_bytes(), content_type="image/tiff", accept=accept, attributes=attributes)

    return ask


def _ask_sagemaker(scene: Path, name: str, task: str, aws: AwsSettings, local: list[str]) -> Ask:
    from hls_foundry.endpoints.aws import Aws
    from hls_foundry.endpoints.sagemaker.endpoints import SageMakerEndpoints
    from hls_foundry.endpoints.sagemaker.invoker import invoker_for

    identity = Aws(aws)
    try:
        found = SageMakerEndpoints(identity).get(name)
    except EndpointError as error:
        known = ", ".join(local) or "none"
        raise EndpointError(f"no endpoint '{name}' on this machine (there are: {known}), and on SageMaker: {error}") from None
    invoker = invoker_for(found, identity, task=task)

    def ask(accept: str, attributes: str) -> Reply:
        return invoker.invoke_file(scene, accept=accept, attributes=attributes)

    return ask


def _by_endpoint(request: PredictRequest, target: Path, name: str, ask: Ask) -> str:
    from hls_foundry.inference.rasters import write_atomically

    options = {"bands": request.bands, "scale": request.scale, "threshold": request.threshold}
    raster = target.suffix.lower() in (".tif", ".tiff")
    reply = ask("image/tiff" if raster else "application/geo+json", format_attributes(options))
    if reply.status != 200:
        where = ", ".join(str(path) for path in request.paths[:1]) + (", …" if len(request.paths) > 1 else "")
        raise EndpointError(f"endpoint '{name}' refused {where} ({reply.status}): {_refusal(reply)}")
    if not raster:
        return _write(json.loads(reply.body)["features"], target)
    write_atomically(target, reply.body)
    return f"{target}: mask from endpoint '{name}'"


def _refusal(reply: Reply) -> str:
    """One line of an error reply, whatever it holds."""
    try:
        problem = json.loads(reply.body)
        return f"{problem['error']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return " ".join(reply.body[:300].decode(errors="replace").split())


def _write(features: list[dict[str, Any]], target: Path) -> str:
    from hls_foundry.inference.polygons import write_vector

    write_vector(features, target)
    areas = [feature["properties"]["area_ha"] for feature in features]
    total = f"{sum(areas):,.1f} ha in " if areas and all(area is not None for area in areas) else ""
    return f"{target}: {total}{len(features):,} polygons"


@contextmanager
def _unpacked(bundle: Path) -> Iterator[Path]:
    """The bundle's folder; an archive, or a folder that holds one, is unpacked for the time being."""
    from hls_foundry.models.bundle import unpack_bundle

    archive = bundle / "model.tar.gz" if bundle.is_dir() else bundle
    if not archive.is_file():
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="hls-bundle-") as folder:
        unpack_bundle(archive, Path(folder) / "bundle")
        yield Path(folder) / "bundle"
