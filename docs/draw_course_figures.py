"""Draw the figures of docs/course from the project's synthetic chips:  python docs/draw_course_figures.py  (or: make figures)

Trains three times for the curves and the maps, in a folder of its own (HLS_FOUNDRY_HOME where set): some minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rasterio.plot import plotting_extent

from hls_foundry.chips.synthetic import SyntheticChip, synthetic_chip
from hls_foundry.chips.synthetic.spectra import SPECTRA
from hls_foundry.evaluation.baseline import normalised_difference
from hls_foundry.evaluation.evaluate import composite
from hls_foundry.evaluation.metrics import Scores
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.inference.polygons import polygons
from hls_foundry.inference.predictor import Predictor
from hls_foundry.models.bundle import load_bundle, unpack_bundle

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "course" / "images"
MOST_KB = 300

# Okabe & Ito 2008: told apart by colour-blind readers, too.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

WAVELENGTHS = {
    # Nanometres, (from, to): HLS user guide v2, table 2; those of Landsat 8, to which the Sentinel-2 data of HLS are adjusted.
    "Blue": (450, 510),
    "Green": (530, 590),
    "Red": (640, 670),
    "NIR": (850, 880),
    "SWIR 1": (1570, 1650),
    "SWIR 2": (2110, 2290),
}
SURFACES = {
    "conifer": ("living forest", GREEN, "o"),
    "grass_dry": ("dry grass", ORANGE, "v"),
    "soil_dark": ("dark soil", PURPLE, "D"),
    "char": ("fresh char", BLACK, "s"),
    "water_clear": ("clear water", BLUE, "^"),
    "water_silty": ("silty flood water", SKY, "^"),
}
BURNT, FLOODED = 21, 4  # which chips of the demo are shown


def save(figure: Figure, name: str, *, dpi: int = 80) -> None:
    """As a palette PNG: a few dozen colours suffice for charts, 256 for imagery."""
    from PIL import Image

    target = IMAGES / name
    figure.savefig(target, dpi=dpi)
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size / 1024
    print(f"{target.relative_to(ROOT)}: {size:.0f} kB")
    if size > MOST_KB:
        raise SystemExit(f"{target.name} is larger than {MOST_KB} kB: draw it smaller")


def draw_spectra() -> None:
    """Reflectance of six surfaces in the six bands."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axis = figure.subplots()
    centres = [(low + high) / 2 for low, high in WAVELENGTHS.values()]
    for number, (name, (low, high)) in enumerate(WAVELENGTHS.items()):
        axis.axvspan(low, high, color="#dddddd", zorder=0)
        axis.text((low + high) / 2, 0.408 + 0.018 * (number % 2 == 1 and number < 3), name, ha="center", fontsize=9)
    for surface, (label, colour, marker) in SURFACES.items():
        axis.plot(centres, SPECTRA[surface], color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)
    axis.set(xlabel="wavelength (nm)", ylabel="surface reflectance", xlim=(430, 2320), ylim=(0, 0.44))
    figure.legend(loc="outside right center", fontsize=9)
    save(figure, "spectra.png")


def draw_chips() -> None:
    """A burn scar and a flood: true colour, false colour, index, label."""
    figure = Figure(figsize=(11, 5.9), layout="constrained")
    rows = figure.subplots(2, 4)
    _draw_chip(rows[0], synthetic_chip("burn_scars", BURNT, 256, 1), ("NBR", ("nir", "swir2")), "burn scar")
    _draw_chip(rows[1], synthetic_chip("flood", FLOODED, 256, 1), ("MNDWI", ("green", "swir1")), "water")
    save(figure, "chips.png", dpi=72)


def _draw_chip(axes: npt.NDArray[Any], chip: SyntheticChip, index: tuple[str, tuple[str, str]], positive: str) -> None:
    name, bands = index
    values = normalised_difference(chip.pixels, bands)
    axes[0].imshow(composite(chip.pixels, (2, 1, 0)))
    axes[1].imshow(composite(chip.pixels, (5, 3, 2)))
    drawn = axes[2].imshow(values, cmap="BrBG", vmin=-0.8, vmax=0.8)
    axes[2].figure.colorbar(drawn, ax=axes[2], shrink=0.8)
    axes[3].imshow(mask_colours(chip.mask))
    for axis, title in zip(axes, ("red, green, blue", "SWIR 2, NIR, red", name, f"label: {positive} dark"), strict=True):
        bare(axis, title)


def mask_colours(mask: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3): background light, class 1 dark, ignored yellow."""
    picture: npt.NDArray[np.uint8] = np.array([(235, 235, 235), (40, 40, 40), (240, 228, 66)], np.uint8)[mask]
    return picture


def bare(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_scores() -> None:
    """What the scores make of one and the same detector as its class becomes rare."""
    recall, false_alarms, pixels = 0.9, 0.02, 1_000_000
    shares = np.geomspace(0.002, 0.5, 60)
    scores = []
    for share in shares:
        positive = round(pixels * share)
        hits, alarms = round(recall * positive), round(false_alarms * (pixels - positive))
        scores.append(Scores.from_confusion([[pixels - positive - alarms, alarms], [positive - hits, hits]]))
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, label, colour, style in (
        ("accuracy", "accuracy", PURPLE, ":"), ("miou", "mean IoU", BLUE, "-."), ("f1", "F1 of class 1", ORANGE, "--"),
        ("iou", "IoU of class 1", BLACK, "-"),
    ):  # fmt: skip
        axis.plot(100 * shares, [getattr(score, name) for score in scores], style, color=colour, label=label)
    axis.set_xscale("log")
    axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20, 50], ["0.2", "0.5", "1", "2", "5", "10", "20", "50"])
    axis.set(xlabel="pixels of class 1 (%)", ylabel="score", ylim=(0, 1))
    axis.set_title("finds 90 % of class 1, and takes 2 % of the rest for it", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    save(figure, "scores.png")


def train(home: Path, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """metrics.jsonl of one training on this machine, and its summary. Trained already in `home`: taken from there."""
    summary = home / "summary.json"
    if not summary.exists():
        command = [sys.executable, "run.py", "--pipeline", "train", "--json", str(summary)]
        command += [part for override in overrides for part in ("--set", override)]
        variables = os.environ | {
            "HLS_FOUNDRY_HOME": str(home),
            "ZENML_CONFIG_PATH": str(home / "zenml"),
            "ZENML_ANALYTICS_OPT_IN": "false",
        }
        subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    [log] = home.glob("training/**/metrics.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()], json.loads(summary.read_text(encoding="utf-8"))


Records = list[dict[str, Any]]


def draw_curves(good: Records, hot: Records, wild: Records) -> None:
    """Loss, validation and learning rate of the demo, beside the same with 50 and with 1000 times its learning rate."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    for records, label, colour in ((good, "the demo's rate", BLUE), (hot, "50 times as high", ORANGE), (wild, "1000 times", BLACK)):
        steps = [record for record in records if "learning_rate" in record]
        checks = [record for record in records if "miou" in record]
        numbers = [record["step"] for record in steps]
        loss.plot(numbers, [record["loss"] for record in steps], color=colour, linewidth=0.9, label=label)
        score.plot([r["step"] for r in checks], [r["iou"] or 0 for r in checks], marker="o", markersize=3, color=colour, label=label)
        rate.semilogy(numbers, [record["learning_rate"] for record in steps], color=colour, label=label)
    loss.set(title="training loss", yscale="log")
    score.set(title="validation: IoU of class 1", ylim=(0, 1))
    rate.set(title="learning rate")
    for axis in (loss, score, rate):
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    loss.legend(fontsize=9)
    save(figure, "curves.png")


def draw_mistakes(predictor: Predictor) -> None:
    """What the same model makes of one scene read right, with two bands exchanged, and with the wrong scale."""
    chip = synthetic_chip("burn_scars", BURNT, 256, 1)
    swapped = chip.pixels[[0, 1, 2, 5, 4, 3]]
    masks = [predictor.mask(pixels) for pixels in (chip.pixels, swapped, chip.pixels / 10, chip.pixels * 10)]
    figure = Figure(figsize=(11, 2.75), layout="constrained")
    axes = figure.subplots(1, 5)
    axes[0].imshow(composite(chip.pixels, (5, 3, 2)))
    bare(axes[0], "SWIR 2, NIR, red")
    for axis, mask, title in zip(
        axes[1:], masks, ("as it should be", "NIR and SWIR 2 exchanged", "scale 10 × too small", "scale 10 × too large"), strict=True
    ):
        iou = Scores.from_confusion(confusion(chip.mask, mask)).iou
        axis.imshow(mask_colours(np.where(chip.mask == -1, np.int16(-1), mask)))
        bare(axis, f"{title}\nIoU {iou:.2f}")
    save(figure, "mistakes.png", dpi=72)


def draw_map(predictor: Predictor) -> None:
    """The model's polygons over the scene in false colour, on the ground: as chapter 3 draws them."""
    chip = synthetic_chip("burn_scars", BURNT, 256, 1)
    probabilities = predictor.probabilities(chip.pixels)
    features = polygons(mask_from_probabilities(probabilities), probabilities, chip.grid, ("background", "burn scar"))
    table = geopandas.GeoDataFrame.from_features(features, crs="EPSG:4326").to_crs(chip.grid.crs)
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(composite(chip.pixels, (5, 3, 2)), extent=plotting_extent(chip.pixels[0], chip.grid.transform))
    table.boundary.plot(ax=axis, color="yellow", linewidth=1.2)
    largest = table.loc[table.area_ha.idxmax()]
    where = largest.geometry.representative_point()
    axis.annotate(f"{largest.area_ha:,.0f} ha", (where.x, where.y), color="white", fontsize=12, ha="center")
    axis.ticklabel_format(style="plain", useOffset=False)
    axis.set(xlabel="easting (m)", ylabel="northing (m)")
    save(figure, "map.png", dpi=72)


def confusion(label: npt.NDArray[np.int16], mask: npt.NDArray[np.int16]) -> list[list[int]]:
    """2×2 pixel counts, rows are the labels."""
    return [[int(((label == row) & (mask == column)).sum()) for column in (0, 1)] for row in (0, 1)]


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_spectra()
    draw_chips()
    draw_scores()
    with tempfile.TemporaryDirectory(prefix="hls-figures-") as scratch:
        home = Path(os.environ.get("HLS_FOUNDRY_HOME", scratch))
        hot, _ = train(home / "hot", "training.validate_every=9", "training.learning_rate=5e-2", "training.epochs=6")
        wild, _ = train(home / "wild", "training.validate_every=9", "training.learning_rate=1.0", "training.epochs=6")
        good, summary = train(home / "good", "training.validate_every=9", "training.epochs=12")
        draw_curves(good, hot, wild)
        with tempfile.TemporaryDirectory() as folder:
            unpack_bundle(Path(summary["model"]["uri"]), Path(folder) / "bundle")
            predictor = Predictor(load_bundle(Path(folder) / "bundle"))
        draw_mistakes(predictor)
        draw_map(predictor)


if __name__ == "__main__":
    main()
