"""What an endpoint replied, read back and held against what it should be."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from hls_foundry.chips.reader import degrees_transformer
from hls_foundry.chips.scene import Grid
from hls_foundry.endpoints.client import Reply
from hls_foundry.inference.masks import mask_from_probabilities

AREA_TOLERANCE = 0.02
INSIDE_TOLERANCE_PX = 0.5  # coordinates are rounded to a centimetre; half a pixel is far more than that
SAME_PLACE_DEGREES = 1e-7
Mask = npt.NDArray[np.int16]


def mask_of_tiff(reply: Reply, grid: Grid) -> tuple[Mask | None, str]:
    """The mask in a GeoTIFF reply, −1 where there is no data, and what is wrong with it ("" where nothing is)."""
    try:
        with MemoryFile(reply.body) as memory, memory.open(driver="GTiff") as dataset:
            if (dataset.width, dataset.height) != (grid.width, grid.height):
                return None, f"the mask has {dataset.width} × {dataset.height} pixels, the image {grid.width} × {grid.height}"
            raw = dataset.read(1).astype(np.int16)
            mask = np.where(raw == dataset.nodata, np.int16(-1), raw)
            cog = dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
            got = Grid(dataset.width, dataset.height, dataset.transform, dataset.crs)
    except RasterioError as error:
        return None, f"the reply is not a GeoTIFF ({error})"
    if not _same_place(got, grid):
        return mask, "the mask is not on the image's grid"
    return mask, "" if cog else "the mask is not a cloud-optimised GeoTIFF"


def mask_of_npy(reply: Reply, grid: Grid, threshold: float | None) -> tuple[Mask | None, str]:
    """The mask that the probabilities in an .npy reply make."""
    try:
        probabilities = np.load(io.BytesIO(reply.body), allow_pickle=False)
    except (ValueError, OSError) as error:
        return None, f"the reply is not a NumPy array ({error})"
    if probabilities.dtype != np.float32 or probabilities.ndim != 3 or probabilities.shape[1:] != (grid.height, grid.width):
        return None, f"the probabilities are {probabilities.dtype} {probabilities.shape}, not float32 (K, {grid.height}, {grid.width})"
    known = probabilities[:, np.isfinite(probabilities[0])]
    mask = mask_from_probabilities(probabilities, threshold)
    if known.size and (known.min() < 0 or known.max() > 1 or abs(known.sum(axis=0) - 1).max() > 1e-3):
        return mask, "the probabilities are not between 0 and 1, or do not sum to 1"
    return mask, ""


def problem_of_png(reply: Reply, grid: Grid) -> str:
    """What is wrong with an overlay reply; "" where nothing is."""
    try:
        with MemoryFile(reply.body) as memory, memory.open(driver="PNG") as dataset:
            shape = (dataset.width, dataset.height)
            dataset.read()
    except RasterioError as error:
        return f"the reply is not a PNG ({error})"
    return "" if shape == (grid.width, grid.height) else f"the overlay has {shape[0]} × {shape[1]} pixels"


def judge_polygons(reply: Reply, mask: Mask, grid: Grid) -> tuple[dict[str, Any] | None, list[str]]:
    """The GeoJSON document and what is wrong with it, judged against the in-process mask (H, W) on `grid`.

    Geometry must be valid, inside the image, of the mask's area to 2 %, and `area_ha` must be that of the geometry on the ellipsoid.
    """
    try:
        document = json.loads(reply.body)
        features = document["features"]
        shapes = np.array([shapely.geometry.shape(feature["geometry"]) for feature in features], dtype=object)
        hectares = [feature["properties"]["area_ha"] for feature in features]
        sure = [float(feature["properties"]["mean_probability"]) for feature in features]
    except (ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
        return None, [f"the reply is not a GeoJSON FeatureCollection of ours ({type(error).__name__})"]
    problems = []
    if invalid := int((~shapely.is_valid(shapes)).sum()) if len(shapes) else 0:
        problems.append(
            f"{invalid} of {len(shapes)} polygons are not valid: {shapely.is_valid_reason(shapes[~shapely.is_valid(shapes)][0])}"
        )
    if any(not 0 <= probability <= 1 for probability in sure):
        problems.append("a mean_probability is not between 0 and 1")
    expected = int((mask == 1).sum())
    in_pixels = to_pixels(shapes, grid)
    area = float(shapely.area(in_pixels).sum()) if len(shapes) else 0.0
    if abs(area - expected) > AREA_TOLERANCE * expected:
        problems.append(f"the polygons cover {area:.1f} pixels, the mask {expected}")
    if len(shapes):
        left, top, right, bottom = shapely.total_bounds(in_pixels)
        if min(left, top) < -INSIDE_TOLERANCE_PX or right > grid.width + INSIDE_TOLERANCE_PX or bottom > grid.height + INSIDE_TOLERANCE_PX:
            problems.append("polygons reach out of the image")
        if grid.crs is not None:
            on_ellipsoid = _hectares(shapes)
            if abs(sum(hectares) - on_ellipsoid) > AREA_TOLERANCE * on_ellipsoid:
                problems.append(f"area_ha adds up to {sum(hectares):.2f} ha, the polygons to {on_ellipsoid:.2f} ha")
    return document, problems


def to_pixels(shapes: npt.NDArray[np.object_], grid: Grid) -> npt.NDArray[np.object_]:
    """Shapes in EPSG:4326 → in columns and rows of `grid`; unchanged where it has no CRS, since then they are in pixels already."""
    transformer = degrees_transformer(grid.crs.to_wkt()) if grid.crs is not None else None
    if transformer is None or not len(shapes):
        return shapes
    longitude, latitude = shapely.get_coordinates(shapes).T
    x, y = transformer.transform(longitude, latitude, direction="INVERSE")
    inverse = ~grid.transform
    points = np.column_stack([inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f])
    placed: npt.NDArray[np.object_] = shapely.set_coordinates(shapes.copy(), points)
    return placed


def _hectares(shapes: npt.NDArray[np.object_]) -> float:
    """Area on the WGS 84 ellipsoid, by geodesics: another way than the endpoint's."""
    geod = pyproj.Geod(ellps="WGS84")
    return sum(abs(geod.geometry_area_perimeter(shape)[0]) for shape in shapes) / 10_000


def _same_place(one: Grid, other: Grid) -> bool:
    """Whether two grids of one size lie on the same ground, however their CRS are written: by their corners and centre in degrees."""
    if (one.crs is None) != (other.crs is None):
        return False
    return bool(np.allclose(_corners(one), _corners(other), rtol=0, atol=SAME_PLACE_DEGREES, equal_nan=True))


def _corners(grid: Grid) -> npt.NDArray[np.float64]:
    points = [(0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height), (grid.width / 2, grid.height / 2)]
    if grid.crs is None:
        return np.zeros((5, 2))
    x, y = np.array([grid.transform @ point for point in points], dtype=float).T
    transformer = degrees_transformer(grid.crs.to_wkt())
    return np.column_stack(transformer.transform(x, y)) if transformer else np.column_stack([x, y])
