"""Masks as polygons in longitude and latitude, with their area and how sure the model was."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio.features
import shapely
from rasterio.crs import CRS

from hls_foundry.chips.reader import degrees_transformer
from hls_foundry.chips.scene import Grid
from hls_foundry.errors import ChipError, FoundryError
from hls_foundry.inference.rasters import write_atomically

Feature = dict[str, Any]

DECIMALS = 7  # of a degree: a centimetre
STRAIGHT_PIXELS = 32.0
"""Longest edge before it is divided. A straight line on a map projection bends in longitude and latitude: by 2 cm over 32 pixels of
30 m, but by 200 m over a granule's side, enough for a neighbour's corner to cross it."""

PIXEL_SPACE = "pixels: column, row from the upper left corner of the image, which has no georeferencing"
VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg")


def polygons(
    mask: npt.NDArray[np.integer[Any]],
    probabilities: npt.NDArray[np.float32],
    grid: Grid,
    classes: Sequence[str],
    min_area_px: int = 0,
) -> list[Feature]:
    """GeoJSON features (RFC 7946), one for each region of pixels of a class above 0 that touch along their sides.

    `mask`: (H, W), 0 and below is left out. `probabilities`: (K, H, W). `classes`: names of class 0, 1, …. Regions under
    `min_area_px` pixels are dropped. Geometry follows the pixels' corners, keeps holes, is valid, and counter-clockwise outside.

    On a georeferenced grid coordinates are EPSG:4326, cut at the antimeridian, and `area_ha` is the area on the WGS 84 ellipsoid
    (cylindrical equal-area projection). Without a CRS coordinates are pixels (column, row) and `area_ha` is null.
    `mean_probability` is the mean over the region's own pixels of the probability of its class.

    Raises ChipError where the grid cannot be brought to EPSG:4326.
    """
    features: list[Feature] = []
    for value in range(1, len(classes)):
        regions = _regions(mask == value)
        pixels = shapely.area(regions)
        kept = pixels >= max(min_area_px, 1)
        regions, pixels = regions[kept], pixels[kept]
        if not len(regions):
            continue
        means = _sums(regions, probabilities[value]) / pixels
        shapes, hectares = _placed(_valid(regions), grid)
        for shape, area, mean in zip(shapes, hectares, means, strict=True):
            properties = {
                "class": classes[value],
                "area_ha": None if np.isnan(area) else float(f"{area:.6g}"),
                "mean_probability": round(float(mean), 4),
            }
            features.append({"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": properties})
    return features


def feature_collection(features: Sequence[Feature], **members: Any) -> dict[str, Any]:
    """The GeoJSON document of `features`. Says so, in the member `coordinate_space`, where they are in pixels."""
    document: dict[str, Any] = {"type": "FeatureCollection", **members}
    if any(feature["properties"]["area_ha"] is None for feature in features):
        document["coordinate_space"] = PIXEL_SPACE
    return document | {"features": list(features)}


def write_vector(features: Sequence[Feature], path: Path) -> Path:
    """Write features as GeoJSON (.geojson, .json) or GeoPackage (.gpkg, layer `polygons`), by the suffix; atomically.

    Raises FoundryError for another suffix, or where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in VECTOR_SUFFIXES:
        raise FoundryError(f"{path}: polygons are written as {', '.join(VECTOR_SUFFIXES)}, not '{suffix}': choose one of these suffixes")
    if suffix != ".gpkg":
        write_atomically(path, json.dumps(feature_collection(features), separators=(",", ":")).encode())
        return path
    import geopandas  # an extra: the serving image has no GeoPandas
    import pyogrio

    in_pixels = any(feature["properties"]["area_ha"] is None for feature in features)
    columns = {name: [feature["properties"][name] for feature in features] for name in ("class", "area_ha", "mean_probability")}
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    table = geopandas.GeoDataFrame(columns, geometry=shapes, crs=None if in_pixels else "EPSG:4326")
    table = table.astype({"class": "object", "area_ha": "float64", "mean_probability": "float64"})
    temporary = path.with_name(f".{uuid4().hex}.gpkg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # pixels have none
        pyogrio.write_dataframe(table, temporary, layer="polygons", driver="GPKG", promote_to_multi=True, geometry_type="MultiPolygon")
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # pyogrio's errors are RuntimeErrors
        raise FoundryError(f"{path} cannot be written ({' '.join(str(error).split())}): free some space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _regions(found: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """Polygons, in pixel coordinates, of the regions of a (H, W) mask whose pixels touch along their sides."""
    shapes = rasterio.features.shapes(found.astype(np.uint8), mask=found, connectivity=4)
    rings = [shape["coordinates"] for shape, _ in shapes]
    if not rings:
        return np.empty(0, dtype=object)
    flat = [ring for polygon in rings for ring in polygon]
    points = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in flat])
    of_point = np.repeat(np.arange(len(flat)), [len(ring) for ring in flat])
    of_ring = np.repeat(np.arange(len(rings)), [len(polygon) for polygon in rings])
    made: npt.NDArray[np.object_] = shapely.polygons(shapely.linearrings(points, indices=of_point), indices=of_ring)
    return made


def _sums(regions: npt.NDArray[np.object_], values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum of `values` (H, W) over each region's own pixels.

    By Green's theorem the sum over an area is one along its outline: with T[y, x] the sum of all values above and left of a corner,
    each vertical edge from (x, y₀) to (x, y₁) adds T[y₁, x] − T[y₀, x]. So the cost is that of the corners, whatever the regions'
    size, and holes take care of themselves.
    """
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(np.nan_to_num(values), axis=0, dtype=np.float64, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    rings, of_region = shapely.get_rings(regions, return_index=True)
    points, of_ring = shapely.get_coordinates(rings, return_index=True)
    x, y = points.astype(np.intp).T
    edge = (np.diff(of_ring) == 0) & (np.diff(x) == 0)
    steps = np.where(edge, table[y[1:], x[1:]] - table[y[:-1], x[:-1]], 0.0)
    by_ring = np.abs(np.bincount(of_ring[1:], weights=steps, minlength=len(rings)))
    by_ring[1:][np.diff(of_region) == 0] *= -1.0  # every ring of a polygon but its first is a hole
    return np.bincount(of_region, weights=by_ring, minlength=len(regions)).astype(np.float64, copy=False)


def _valid(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Valid polygons. Only an outline that touches itself at a corner (a ring of pixels closed across a diagonal) needs mending."""
    wrong = ~shapely.is_valid(shapes)
    if wrong.any():
        shapes = shapes.copy()
        shapes[wrong] = shapely.make_valid(shapes[wrong])
    return shapes


def _placed(regions: npt.NDArray[np.object_], grid: Grid) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Regions in pixels → in longitude and latitude, and their hectares; unchanged and NaN on a grid without CRS."""
    if grid.crs is None:
        return shapely.orient_polygons(regions), np.full(len(regions), np.nan)
    geographic = grid.crs == CRS.from_epsg(4326)
    if not geographic:
        regions = shapely.segmentize(regions, STRAIGHT_PIXELS)
    columns, rows = shapely.get_coordinates(regions).T
    t = grid.transform
    x, y = t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f
    if not geographic:
        to_degrees = degrees_transformer(grid.crs.to_wkt())
        if to_degrees is None:
            raise ChipError("the image's coordinate reference system has no place on Earth: polygons need one that converts to EPSG:4326")
        x, y = to_degrees.transform(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ChipError("the image's georeferencing lies outside of its projection: polygons cannot be given in EPSG:4326")
    # All around the first corner, so that a scene across the antimeridian stays in one piece until it is cut there.
    centre = x[0]
    x = (x - centre + 180.0) % 360.0 - 180.0
    hectares = shapely.area(shapely.set_coordinates(regions.copy(), _equal_area(x, y))) / 10_000
    degrees = np.round(np.column_stack([x + centre, y]), DECIMALS)
    placed = _valid(shapely.set_coordinates(regions.copy(), degrees))
    return shapely.orient_polygons(_cut_at_antimeridian(placed)), hectares


def _equal_area(longitude: npt.NDArray[np.float64], latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, 2) metres in the ellipsoid's cylindrical equal-area projection: meridians and parallels stay straight."""
    return np.column_stack(_equal_area_transformer().transform(longitude, latitude))


@lru_cache(maxsize=1)
def _equal_area_transformer() -> pyproj.Transformer:
    return pyproj.Transformer.from_crs("EPSG:4326", "+proj=cea +datum=WGS84", always_xy=True)


def _cut_at_antimeridian(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """RFC 7946, section 3.1.9: polygons that reach beyond ±180° become several, each within."""
    bounds = shapely.bounds(shapes)
    beyond = np.flatnonzero((bounds[:, 0] < -180.0) | (bounds[:, 2] > 180.0))
    shapes = shapes.copy()
    for index in beyond:
        parts = []
        for turn in (-360.0, 0.0, 360.0):
            part = shapely.intersection(shapes[index], shapely.box(-180.0 + turn, -90.0, 180.0 + turn, 90.0))
            parts.append(shapely.transform(part, lambda points, turn=turn: points - [turn, 0.0]))
        shapes[index] = shapely.union_all(parts)
    return shapes
