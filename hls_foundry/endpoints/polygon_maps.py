"""Draws what an endpoint returned: where on Earth it found how much, and its polygons over the imagery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from hls_foundry.chips.footprint_map import degrees, graticule, scale_bar
from hls_foundry.chips.reader import degrees_transformer
from hls_foundry.report.picture import GREY, VERMILLION, Picture, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hls_foundry.chips.scene import Grid
    from hls_foundry.endpoints.inference_test import ChipPrediction

OUTLINE = "#00E5FF"  # stands out from red, green and brown alike, to the colour-blind as well
COLUMNS = 3
CROWD = 60  # chips on the map from which circles are drawn smaller


def places_map(predictions: Sequence[ChipPrediction]) -> Picture | None:
    """Each chip's place with a circle as large as the area found there; None where no chip has a place on Earth."""
    from matplotlib.figure import Figure

    placed = [(place, prediction) for prediction in predictions if (place := centre(prediction.grid)) is not None]
    if not placed:
        return None
    points, hectares = np.array([place for place, _ in placed]), np.array([area(prediction) for _, prediction in placed])
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    empty = hectares == 0
    axes.scatter(
        points[empty, 0], points[empty, 1], marker="x", s=24, color=GREY, linewidth=1.2, label=f"nothing found ({empty.sum():,})", zorder=3
    )
    largest = 480 * min(1.0, CROWD / len(placed))
    sizes = 20 + largest * hectares[~empty] / hectares.max() if (~empty).any() else []
    label = f"polygons returned ({(~empty).sum():,}); the larger, the more hectares"
    axes.scatter(points[~empty, 0], points[~empty, 1], s=sizes, color=f"{VERMILLION}80", edgecolor=VERMILLION, label=label, zorder=4)
    middle = float(points[:, 1].mean())
    axes.set_aspect(1 / max(math.cos(math.radians(middle)), 0.05), adjustable="datalim")
    axes.margins(0.12)
    figure.canvas.draw_idle()
    axes.apply_aspect()
    graticule(axes)
    scale_bar(axes)
    legend: Any = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    told = f"Map of {len(placed)} test chips: polygons on {(~empty).sum()}, {hectares.sum():,.0f} hectares in all"
    return drawn(figure, "endpoint_places", told)


def polygon_gallery(predictions: Sequence[ChipPrediction]) -> Picture | None:
    """The returned polygons as outlines over false colour; None where no chip's imagery was kept."""
    from matplotlib.figure import Figure

    kept = [(one, one.picture) for one in predictions if one.picture is not None]
    shown = sorted(kept, key=lambda pair: -pair[0].found)
    if not shown:
        return None
    rows = -(-len(shown) // COLUMNS)
    height = 3.95 * rows
    figure = Figure(figsize=(10.5, height))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.4 / height, bottom=0.25 / height, wspace=0.04, hspace=0.18)
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, (prediction, picture) in zip(panels, shown, strict=False):
        _panel(axes, prediction, picture)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    total = sum(len(features(one)) for one, _ in shown)
    told = f"{total} polygons that the endpoint returned, outlined over SWIR 2, NIR and red of {len(shown)} test chips"
    caption = f"SWIR 2, NIR, red; in cyan the polygons that came back, of the {len(shown)} chips with the most class 1."
    return drawn(figure, "endpoint_polygons", told, imagery=True, caption=caption)


def features(prediction: ChipPrediction) -> list[dict[str, Any]]:
    """The GeoJSON features of a chip."""
    found: list[dict[str, Any]] = (prediction.collection or {}).get("features", [])
    return found


def area(prediction: ChipPrediction) -> float:
    """Hectares of all polygons of a chip; 0 where they have none."""
    return float(sum(feature["properties"].get("area_ha") or 0.0 for feature in features(prediction)))


def outlines(prediction: ChipPrediction) -> list[npt.NDArray[np.float64]]:
    """Every ring of a chip's polygons as (points, 2) columns and rows of its grid."""
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features(prediction)]
    grid = prediction.grid
    rings = []
    for ring in shapely.get_rings(np.array(shapes, dtype=object)) if shapes else []:
        x, y = shapely.get_coordinates(ring).T
        if grid.crs is not None:
            x, y = _from_degrees(grid.crs.to_wkt()).transform(x, y)
            t = ~grid.transform
            x, y = t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
        rings.append(np.column_stack([x, y]))
    return rings


def centre(grid: Grid) -> tuple[float, float] | None:
    """Longitude and latitude of a grid's centre; None without a place on Earth."""
    to_degrees = degrees_transformer(grid.crs.to_wkt()) if grid.crs is not None else None
    if to_degrees is None:
        return None
    longitude, latitude = to_degrees.transform(*(grid.transform @ (grid.width / 2, grid.height / 2)))
    return (float(longitude), float(latitude)) if np.isfinite([longitude, latitude]).all() else None


def _panel(axes: Axes, prediction: ChipPrediction, picture: npt.NDArray[np.uint8]) -> None:
    from matplotlib.collections import LineCollection

    grid = prediction.grid
    axes.imshow(picture, extent=(0, grid.width, grid.height, 0), interpolation="nearest")
    rings = outlines(prediction)
    # Dark below cyan: the line is seen on bright soil and on dark scars.
    axes.add_collection(LineCollection(rings, colors="#10202a", linewidths=2.8))
    axes.add_collection(LineCollection(rings, colors=OUTLINE, linewidths=1.4))
    axes.set(xlim=(0, grid.width), ylim=(grid.height, 0), xticks=[], yticks=[])
    count, hectares = len(features(prediction)), area(prediction)
    size = f", {hectares:,.0f} ha" if hectares else ""
    axes.set_title(f"{_short(prediction.chip)}\n{count} polygon{'s' * (count != 1)}{size}", fontsize=8)
    if (place := centre(grid)) is not None:
        axes.set_xlabel(f"{degrees(round(place[0], 2), 'EW')}, {degrees(round(place[1], 2), 'NS')}", fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:19]}…{name[-19:]}"


@lru_cache(maxsize=512)
def _from_degrees(wkt: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs("EPSG:4326", pyproj.CRS.from_wkt(wkt), always_xy=True)
