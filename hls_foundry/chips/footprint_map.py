"""A map of chips by longitude and latitude, with a graticule and a scale, and no tiles: it is drawn without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from hls_foundry.chips.splits import footprints
from hls_foundry.report.picture import Picture, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KM_PER_DEGREE = 111.32
WIDTH_IN, TALLEST_IN = 9.5, 5.2
SMALL_PX = 9  # footprints under this many pixels on the map get a marker, else they would not be seen


class Style(NamedTuple):
    """How one group of chips is drawn: by colour and by shape, since not everybody tells colours apart."""

    colour: str
    marker: str


def footprint_map(table: pd.DataFrame, groups: Sequence[str], styles: Mapping[str, Style], name: str) -> Picture | None:
    """The chips of an inventory's `table`, each in the style of its group (one a row); None where no chip has a place on Earth."""
    from matplotlib.figure import Figure

    shapes = footprints(table.reset_index(drop=True))
    placed = np.array([shape is not None for shape in shapes], dtype=bool)
    if not placed.any():
        return None
    bounds = shapely.bounds(shapes[placed])
    left, bottom, right, top = _view(bounds)
    aspect = 1 / max(math.cos(math.radians((bottom + top) / 2)), 0.05)
    height = min((WIDTH_IN - 1) * aspect * (top - bottom) / (right - left), TALLEST_IN)
    figure = Figure(figsize=(WIDTH_IN, height + 0.8), layout="constrained")  # more for the names of the degrees and the legend
    axes = figure.subplots()
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect=aspect)
    labels = np.asarray(groups, dtype=object)
    for group, style in styles.items():
        chosen = placed & (labels == group)
        if chosen.any():
            _draw(axes, shapes[chosen], style, f"{group} ({chosen.sum():,})", (right - left))
    graticule(axes)
    scale_bar(axes)
    figure.legend(loc="outside lower center", ncols=len(styles), frameon=False, fontsize=9)
    told = ", ".join(f"{(placed & (labels == group)).sum()} {group}" for group in styles)
    missing = f"{(~placed).sum():,} chips without georeferencing are not on the map." if not placed.all() else ""
    west, south, east, north = (round(float(edge), 2) for edge in (*bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0)))
    where = f"between {degrees(west, 'EW')} and {degrees(east, 'EW')}, {degrees(south, 'NS')} and {degrees(north, 'NS')}"
    return drawn(figure, name, f"Map of the footprints of {placed.sum()} chips {where}: {told}", caption=missing)


def graticule(axes: Axes) -> None:
    """Meridians and parallels behind what is drawn, named at the border."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, letters in ((axes.xaxis, "EW"), (axes.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 2, 3, 5, 6, 9, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _, letters=letters: degrees(value, letters)))
    axes.grid(color="#c9d1d9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0)
    axes.set_facecolor("#f7f9fb")


def degrees(value: float, letters: str) -> str:
    """12.5° W and the like; `letters`: those of the positive and the negative direction."""
    if letters == "EW":
        value = (value + 180) % 360 - 180
    letter = letters[0] if value > 0 else letters[1] if value < 0 else ""
    return f"{float(f'{abs(value):.7g}'):.7g}° {letter}".rstrip()


def scale_bar(axes: Axes) -> None:
    """A bar of a round number of kilometres, at the map's own latitude."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    km_per_degree = KM_PER_DEGREE * max(math.cos(math.radians((bottom + top) / 2)), 0.05)
    wanted = (right - left) * km_per_degree / 5
    if not 0 < wanted < 4000:  # on a map of half the world the scale changes too much with latitude
        return
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    x, y = left + 0.03 * (right - left), bottom + 0.04 * (top - bottom)
    axes.plot([x, x + length / km_per_degree], [y, y], color="#1c1f23", linewidth=2.5, solid_capstyle="butt", zorder=5)
    words = f"{length:g} km" if length >= 1 else f"{1000 * length:g} m"
    axes.text(x, y + 0.012 * (top - bottom), words, fontsize=8, va="bottom", zorder=5)


def _view(bounds: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """What the map shows: all of it, with a margin, and at least as wide as the picture's own shape asks."""
    left, bottom = bounds[:, :2].min(axis=0)
    right, top = bounds[:, 2:].max(axis=0)
    narrow = max(math.cos(math.radians((bottom + top) / 2)), 0.05)
    width, height = max((right - left) * narrow, 0.02) * 1.1, max(top - bottom, 0.02) * 1.1
    width, height = max(width, height * 1.2), max(height, width / 2.4)
    x, y = (left + right) / 2, (bottom + top) / 2
    return x - width / narrow / 2, max(y - height / 2, -90.0), x + width / narrow / 2, min(y + height / 2, 90.0)


def _draw(axes: Axes, shapes: npt.NDArray[np.object_], style: Style, label: str, width_degrees: float) -> None:
    from matplotlib.collections import PolyCollection

    outlines = [shapely.get_coordinates(shape) for shape in shapes]
    axes.add_collection(PolyCollection(outlines, facecolors=f"{style.colour}40", edgecolors=style.colour, linewidths=0.8, zorder=3))
    size = np.median(np.ptp(np.stack([outline[:4, 0] for outline in outlines]), axis=1)) / width_degrees * 90 * WIDTH_IN
    centres = shapely.get_coordinates(shapely.centroid(shapes))
    points = centres if size < SMALL_PX else np.full((1, 2), np.nan)  # the legend needs the marker either way
    axes.scatter(
        points[:, 0], points[:, 1], s=22, marker=style.marker, color=style.colour, edgecolor="white", linewidth=0.4, label=label, zorder=4
    )
