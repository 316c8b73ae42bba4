"""Map one scene to a file: in this process with a bundle, or by asking an endpoint."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hls_foundry.chips.reader import ChipReader
from hls_foundry.endpoints.client import EndpointClient, format_attributes
from hls_foundry.endpoints.local import LocalEndpoints
from hls_foundry.errors import BundleError, ChipError, ConfigError, EndpointError
from hls_foundry.progress import progress_bar

SUFFIXES = (".tif", ".tiff", ".geojson", ".gpkg")


@dataclass(frozen=True)
class PredictRequest:
    """A scene, how its file is read, and where the answer goes. `bands`: six numbers or names, comma-separated."""

    scene: Path
    out: Path | None = None
    bands: str | None = None
    scale: float | None = None
    threshold: float | None = None

    @property
    def target(self) -> Path:
        """Where the answer goes. Raises ConfigError for a suffix that says no format."""
        target = self.out or self.scene.with_name(f"{self.scene.stem}_prediction.tif")
        if target.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out {target}: '{target.suffix}' says no format; use .tif, .geojson or .gpkg")
        return target

    def band_list(self) -> tuple[int | str, ...] | None:
        """`bands` as the reader takes it."""
        if self.bands is None:
            return None
        return tuple(int(part) if part.strip().isdigit() else part.strip() for part in self.bands.split(","))


def predict_file(request: PredictRequest, home: Path, *, task: str, bundle: Path | None, endpoint: str | None) -> str:
    """Write the prediction and return one line that says what was found and where it lies.

    Without `endpoint`, the bundle given, else the one that the local endpoint of `task` serves, predicts in this process.
    Raises ChipError, BundleError, EndpointError or ConfigError, each one line; no half-written file stays.
    """
    target = request.target
    if not request.scene.is_file():
        raise ChipError(f"{request.scene} does not exist: give an existing GeoTIFF")
    endpoints = LocalEndpoints(home / "endpoints")
    if endpoint:
        return _by_endpoint(request, target, endpoints.get(endpoint).url)
    if bundle is None:
        served = [known for known in endpoints.list() if known.name == task]
        if not served:
            raise BundleError(f"no bundle to predict with: give --bundle FOLDER, or deploy one first (python run.py --task {task})")
        bundle = Path(served[0].bundle)
    return _in_process(request, target, bundle)


def _in_process(request: PredictRequest, target: Path, bundle: Path) -> str:
    from hls_foundry.inference.predictor import Predictor
    from hls_foundry.models.bundle import load_bundle

    if not bundle.exists():
        raise BundleError(f"no bundle at {bundle}: give a bundle folder or a model.tar.gz")
    options: dict[str, Any] = {"bands": request.band_list() or "auto", "scale": request.scale or "auto"}
    with (
        _unpacked(bundle) as folder,
        ChipReader(request.scene, **options) as reader,
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


def _by_endpoint(request: PredictRequest, target: Path, url: str) -> str:
    options = {"bands": request.bands, "scale": request.scale, "threshold": request.threshold}
    attributes = format_attributes({key: value for key, value in options.items() if value is not None})
    raster = target.suffix.lower() in (".tif", ".tiff")
    accept = "image/tiff" if raster else "application/geo+json"
    with EndpointClient(url) as client:
        reply = client.invoke(request.scene.read_bytes(), content_type="image/tiff", accept=accept, attributes=attributes)
    if reply.status != 200:
        problem = reply.json()
        raise EndpointError(f"{url} refused {request.scene} ({reply.status} {problem.get('error', '')}): {problem.get('detail', '')}")
    if not raster:
        return _write(json.loads(reply.body)["features"], target)
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    with os.fdopen(descriptor, "wb") as file:
        file.write(reply.body)
    Path(name).replace(target)
    return f"{target}: mask from {url}"


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
