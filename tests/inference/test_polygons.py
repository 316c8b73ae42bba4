"""Polygons: geometry, area, probability, coordinates and files."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from hls_foundry.chips.reader import open_geotiff, read_mask
from hls_foundry.chips.scene import Grid
from hls_foundry.errors import FoundryError
from hls_foundry.inference.polygons import Feature, feature_collection, polygons, write_vector

CLASSES = ("background", "burn scar")
UTM10 = CRS.from_epsg(32610)
Mask = npt.NDArray[np.int16]


def utm(size: int, *, epsg: int = 32610, left: float = 500_000, top: float = 4_500_000, resolution: float = 30) -> Grid:
    return Grid(size, size, Affine(resolution, 0, left, 0, -resolution, top), CRS.from_epsg(epsg))


def both(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.stack([1 - probability, probability])


def shapes_of(features: list[Feature]) -> list[shapely.Geometry]:
    return [shapely.geometry.shape(feature["geometry"]) for feature in features]


def blobs(size: int, seed: int = 0) -> tuple[Mask, npt.NDArray[np.float32]]:
    coarse = np.random.default_rng(seed).random((size // 8 + 1, size // 8 + 1)).repeat(8, 0).repeat(8, 1)[:size, :size]
    fine = np.random.default_rng(seed + 1).random((size, size))
    probability = (0.7 * coarse + 0.3 * fine).astype(np.float32)
    return (probability > 0.5).astype(np.int16), both(probability)


def test_a_region_is_one_polygon_with_its_holes_on_the_pixels_corners() -> None:
    mask = np.zeros((64, 64), np.int16)
    mask[10:20, 30:50] = 1
    mask[12:15, 35:40] = 0
    mask[40:42, 5:6] = 1
    features = polygons(mask, both(np.full((64, 64), 0.75, np.float32)), Grid(64, 64), CLASSES)
    large, small = sorted(shapes_of(features), key=lambda shape: -shape.area)
    assert large.equals(shapely.box(30, 10, 50, 20) - shapely.box(35, 12, 40, 15))
    assert small.equals(shapely.box(5, 40, 6, 42))
    assert features[0]["properties"] == {"class": "burn scar", "area_ha": None, "mean_probability": 0.75}


def test_pixels_that_touch_at_corners_only_are_regions_of_their_own() -> None:
    mask = np.eye(8, dtype=np.int16)
    features = polygons(mask, both(np.ones((8, 8), np.float32)), Grid(8, 8), CLASSES)
    assert len(features) == 8
    assert all(shape.is_valid and shape.area == 1 for shape in shapes_of(features))


def test_a_ring_closed_across_a_diagonal_stays_valid() -> None:
    mask = np.ones((5, 5), np.int16)
    mask[1:4, 1:4] = 0
    mask[0, 0] = 0  # the hole touches the outside at a corner
    (feature,) = polygons(mask, both(np.ones((5, 5), np.float32)), utm(5), CLASSES)
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.is_valid
    assert feature["properties"]["area_ha"] == pytest.approx(15 * 0.09, rel=0.01)
    assert feature["properties"]["mean_probability"] == 1.0


@pytest.mark.parametrize("share", [0.3, 0.5, 0.62, 0.9])
def test_noise_gives_valid_polygons_that_burn_back_to_the_mask(share: float) -> None:
    mask = (np.random.default_rng(7).random((120, 150)) < share).astype(np.int16)
    probabilities = both(np.random.default_rng(8).random((120, 150)).astype(np.float32))
    shapes = shapes_of(polygons(mask, probabilities, Grid(150, 120), CLASSES))
    assert all(shape.is_valid for shape in shapes)
    assert {shape.geom_type for shape in shapes} <= {"Polygon", "MultiPolygon"}
    burnt = rasterio.features.rasterize(shapes, (120, 150), dtype="uint8")
    np.testing.assert_array_equal(burnt, mask)
    placed = shapes_of(polygons(mask, probabilities, utm(150), CLASSES))
    assert all(shape.is_valid for shape in placed)


def test_mean_probability_is_that_of_the_regions_own_pixels() -> None:
    mask, probabilities = blobs(160)
    probabilities[:, :20, :20] = np.nan
    mask[:20, :20] = -1
    features = polygons(mask, probabilities, Grid(160, 160), CLASSES)
    assert len(features) > 20
    for feature, shape in zip(features, shapes_of(features), strict=True):
        own = rasterio.features.rasterize([shape], (160, 160), dtype="uint8").astype(bool)
        assert feature["properties"]["mean_probability"] == pytest.approx(float(probabilities[1][own].mean()), abs=1e-4)


def test_specks_are_dropped_and_nothing_else() -> None:
    mask, probabilities = blobs(160)
    everything = shapes_of(polygons(mask, probabilities, Grid(160, 160), CLASSES))
    large = shapes_of(polygons(mask, probabilities, Grid(160, 160), CLASSES, min_area_px=9))
    assert sorted(s.area for s in large) == sorted(s.area for s in everything if s.area >= 9)
    assert 0 < len(large) < len(everything)


@pytest.mark.parametrize(
    "grid",
    [
        utm(160),
        utm(160, epsg=32633, left=450_000, top=8_900_000),  # Svalbard, 80° north
        utm(160, epsg=32719, left=300_000, top=4_200_000),  # Patagonia
        Grid(160, 160, Affine(0.0003, 0, -7.2, 0, -0.0002, 69.9), CRS.from_epsg(4326)),
        Grid(160, 160, Affine(0.0001, 0, -7.2, 0, -0.0001, 0.005), CRS.from_epsg(4326)),  # across the equator
        Grid(160, 160, Affine(25, 10, 500_000, 10, -25, 4_500_000), UTM10),  # rotated
    ],
    ids=["utm", "utm-80N", "utm-south", "degrees-70N", "degrees-equator", "rotated"],
)
def test_areas_are_those_of_the_ellipsoid_and_of_the_masks_pixels(grid: Grid) -> None:
    mask, probabilities = blobs(160)
    features = polygons(mask, probabilities, grid, CLASSES)
    shapes = shapes_of(features)
    assert all(shape.is_valid for shape in shapes)
    geod = pyproj.Geod(ellps="WGS84")
    for feature, shape in zip(features, shapes, strict=True):
        geodesic = abs(geod.geometry_area_perimeter(shapely.orient_polygons(shape))[0]) / 10_000
        assert feature["properties"]["area_ha"] == pytest.approx(geodesic, rel=0.002)
    if grid.crs.is_projected:
        pixel = abs(grid.transform.determinant) / 10_000
        assert sum(f["properties"]["area_ha"] for f in features) == pytest.approx((mask == 1).sum() * pixel, rel=0.02)
    west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *bounds(grid), densify_pts=101)
    chip = shapely.box(west - 1e-6, south - 1e-6, east + 1e-6, north + 1e-6)
    assert all(chip.covers(shape) for shape in shapes)


def bounds(grid: Grid) -> tuple[float, float, float, float]:
    corners = [grid.transform @ corner for corner in ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height))]
    return min(c[0] for c in corners), min(c[1] for c in corners), max(c[0] for c in corners), max(c[1] for c in corners)


def test_outlines_run_counter_clockwise_and_holes_clockwise() -> None:
    mask = np.ones((64, 64), np.int16)
    mask[20:30, 20:30] = 0
    (feature,) = polygons(mask, both(np.ones((64, 64), np.float32)), utm(64), CLASSES)
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.exterior.is_ccw
    assert [ring.is_ccw for ring in shape.interiors] == [False]


def test_long_edges_follow_the_projection() -> None:
    """A whole granule as one polygon: its straight side is 200 m off in degrees if only its corners are transformed."""
    mask = np.ones((3660, 3660), np.int16)
    mask[1, 1:3659] = 0  # a slit 30 m from the edge
    (feature,) = polygons(mask, both(mask.astype(np.float32)), utm(3660, top=7_000_000), CLASSES)
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.is_valid
    assert len(shape.interiors) == 1
    assert feature["properties"]["area_ha"] == pytest.approx(mask.sum() * 0.09, rel=0.001)


def test_a_scene_across_the_antimeridian_is_cut_there() -> None:
    grid = Grid(100, 100, Affine(0.01, 0, 179.5, 0, -0.01, -16.0), CRS.from_epsg(4326))
    (feature,) = polygons(np.ones((100, 100), np.int16), both(np.ones((100, 100), np.float32)), grid, CLASSES)
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.geom_type == "MultiPolygon"
    assert shape.is_valid
    assert sorted(part.bounds[0] for part in shape.geoms) == [-180.0, 179.5]
    assert max(part.bounds[2] for part in shape.geoms) == 180.0
    fiji = utm(64, epsg=32701, left=166_000 - 960 - 10_000, top=8_200_000)
    shapes = shapes_of(polygons(np.ones((64, 64), np.int16), both(np.ones((64, 64), np.float32)), fiji, CLASSES))
    assert all(shape.bounds[0] >= -180 and shape.bounds[2] <= 180 and shape.is_valid for shape in shapes)


def test_no_region_gives_no_feature() -> None:
    empty = np.full((64, 64), -1, np.int16)
    assert polygons(empty, np.full((2, 64, 64), np.nan, np.float32), utm(64), CLASSES) == []


def test_pixel_coordinates_are_declared_in_the_document() -> None:
    mask, probabilities = blobs(64)
    assert "pixels" in feature_collection(polygons(mask, probabilities, Grid(64, 64), CLASSES))["coordinate_space"]
    assert "coordinate_space" not in feature_collection(polygons(mask, probabilities, utm(64), CLASSES))


@pytest.mark.real_data
def test_a_real_mask_with_a_crs_in_custom_words_comes_out_where_it_lies(shared_data: Path) -> None:
    path = shared_data / "hls" / "subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif"
    mask = read_mask(path)
    with ExitStack() as stack:
        dataset = open_geotiff(path, stack, path.name, None)
        grid = Grid(dataset.width, dataset.height, dataset.transform, dataset.crs)
    features = polygons(mask, both(np.where(mask == 1, 0.9, 0.2).astype(np.float32)), grid, CLASSES)
    shapes = shapes_of(features)
    assert all(shape.is_valid for shape in shapes)
    pixel = abs(grid.transform.determinant) / 10_000
    assert sum(f["properties"]["area_ha"] for f in features) == pytest.approx((mask == 1).sum() * pixel, rel=0.02)
    west, south, east, north = shapely.union_all(shapes).bounds
    left, bottom, right, top = transform_bounds(grid.crs, "EPSG:4326", *bounds(grid), densify_pts=21)  # GDAL's reading of the CRS
    assert left - 1e-6 <= west < east <= right + 1e-6
    assert bottom - 1e-6 <= south < north <= top + 1e-6
    assert {f["properties"]["mean_probability"] for f in features} == {0.9}


@pytest.mark.parametrize("name", ["scars.geojson", "new/folder/scars.json", "scars.gpkg"])
@pytest.mark.parametrize("grid", [utm(96), Grid(96, 96)], ids=["georeferenced", "pixels"])
def test_vector_files_hold_the_features(tmp_path: Path, name: str, grid: Grid) -> None:
    mask, probabilities = blobs(96)
    features = polygons(mask, probabilities, grid, CLASSES)
    path = write_vector(features, tmp_path / name)
    table = geopandas.read_file(path)
    assert len(table) == len(features)
    assert set(table["class"]) == {"burn scar"}
    assert table["mean_probability"].tolist() == [f["properties"]["mean_probability"] for f in features]
    assert table["area_ha"].isna().all() == (grid.crs is None)
    assert table.geometry.is_valid.all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if path.suffix == ".gpkg" and grid.crs is not None:
        assert table.crs == "EPSG:4326"


def test_no_features_still_make_a_file(tmp_path: Path) -> None:
    assert json.loads(write_vector([], tmp_path / "none.geojson").read_text())["features"] == []
    assert len(geopandas.read_file(write_vector([], tmp_path / "none.gpkg"))) == 0


def test_another_suffix_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FoundryError, match=r"\.shp.*choose"):
        write_vector([], tmp_path / "scars.shp")
    assert list(tmp_path.iterdir()) == []
