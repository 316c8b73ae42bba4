"""Draws inventories and splits: where the chips lie, how their reflectance compares with the task's reference, and the chips as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.footprint_map import Style, footprint_map
from hls_foundry.chips.histograms import EDGES, BandHistograms
from hls_foundry.chips.splits import SPLITS
from hls_foundry.report import Picture, Section, folded, note, table, tiles
from hls_foundry.report.picture import BLUE, GREEN, GREY, ORANGE, VERMILLION, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hls_foundry.chips.inventory import Inventory
    from hls_foundry.chips.splits import Splits

NAMES = {"blue": "blue", "green": "green", "red": "red", "nir": "near infrared", "swir1": "SWIR 1", "swir2": "SWIR 2"}
COLUMNS = ("chip", "split", "tile", "date", "width", "height", "positive_share", "nodata_share", "cloud_share", "error")
NO_MAP = "No chip has georeferencing: there is no map."
UNLISTED, WRONG = "in no list", "with an error"
STYLES = {"train": Style(BLUE, "o"), "validation": Style(ORANGE, "s"), "test": Style(GREEN, "^")}
WRONG_STYLE, UNLISTED_STYLE = Style(VERMILLION, "X"), Style(GREY, "o")


def inventory_sections(inventory: Inventory, *, mapped: bool = True) -> list[Section]:
    """Footprints by the data set's own lists (where `mapped`), band histograms against the reference, and the chips."""
    chips = inventory.table
    parts: list[str | Picture] = [tiles(_figures(chips))]
    if mapped:
        groups = [WRONG if error else listed or UNLISTED for error, listed in zip(chips["error"], chips["listed_split"], strict=True)]
        styles = {UNLISTED: UNLISTED_STYLE, **STYLES, WRONG: WRONG_STYLE}
        shown = {name: style for name, style in styles.items() if name in groups}
        parts.append(footprint_map(chips, groups, shown, "footprints") or note(NO_MAP))
    sections = [Section("Chips", *parts, chip_table(chips))]
    broken = chips[chips["error"] != ""]
    if wrong := [{"chip": chip, "error": error} for chip, error in zip(broken["chip"], broken["error"], strict=True)]:
        sections.append(Section("Chips with an error", table(wrong)))
    if inventory.histograms is not None and inventory.histograms.counts.any():
        sections.append(Section("Reflectance", band_histograms(inventory.histograms, chips)))
    return sections


def splits_sections(splits: Splits) -> list[Section]:
    """Footprints by split, what each split holds, and the chips."""
    chips = splits.table
    rows = [_split_row(name, splits.of(name)) for name in SPLITS]
    picture = footprint_map(chips, list(chips["split"]), STYLES, "splits")
    lead = table(rows) + "<p>Chips of one place and time stay on one side, so that no test chip is known from training.</p>"
    return [Section("Splits", lead, picture or note(NO_MAP), chip_table(chips))]


def chip_table(chips: pd.DataFrame) -> str:
    """All chips, folded away."""
    columns = [name for name in COLUMNS if name in chips and not (name == "error" and (chips["error"] == "").all())]
    heads = [name.replace("_share", " share").replace("positive", "class 1") for name in columns]
    rows = [dict(zip(heads, row, strict=True)) for row in chips[columns].itertuples(index=False, name=None)]
    return folded(f"{len(rows):,} chips", table(rows))


def band_histograms(histograms: BandHistograms, chips: pd.DataFrame) -> Picture:
    """Of each band: the pixels of all chips as a histogram over the reference's mean ± standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    limits = _limits(histograms)
    for index, (axes, band) in enumerate(zip(figure.subplots(2, 3, sharex=True).flat, BANDS, strict=True)):
        _band(axes, histograms, index, float(chips[f"{band}_mean"].mean()))
        axes.set(xlim=limits, yticks=[], ylim=(0, None))
        axes.set_title(f"{NAMES[band]}", fontsize=10, loc="left")
    figure.supxlabel("surface reflectance", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    alternative = "Histograms of reflectance in six bands over the task's reference: " + "; ".join(
        f"{NAMES[band]} mean {chips[f'{band}_mean'].mean():.3f}, reference {mean:.3f} ± {std:.3f}"
        for band, mean, std in zip(BANDS, histograms.mean, histograms.std, strict=True)
    )
    caption = "About 128 × 128 pixels of every chip that could be read, without nodata."
    if (worst := float(histograms.beyond.max())) > 0.02:
        band = NAMES[BANDS[int(histograms.beyond.argmax())]]
        caption += f" Up to {worst:.0%} of the pixels ({band}) lie beyond the bins, {EDGES[0]:g} to {EDGES[-1]:g}: a wrong scale, or cloud."
    return drawn(figure, "band_histograms", alternative, caption=caption)


def _band(axes: Axes, histograms: BandHistograms, index: int, mean: float) -> None:
    counts, reference, spread = histograms.counts[index], histograms.mean[index], histograms.std[index]
    axes.axvspan(reference - spread, reference + spread, color=ORANGE, alpha=0.22, linewidth=0, label="reference ± σ")
    axes.stairs(counts / max(counts.sum(), 1), EDGES, fill=True, color=BLUE, alpha=0.55, label="these chips")
    axes.axvline(reference, color="#b36b00", linewidth=1.6, linestyle="--", label="reference mean")
    axes.axvline(mean, color=BLUE, linewidth=1.6, label="mean of these chips")
    words = f"mean {mean:.3f}\nreference {reference:.3f} ± {spread:.3f}"
    axes.text(0.97, 0.95, words, transform=axes.transAxes, ha="right", va="top", fontsize=8, linespacing=1.4)
    axes.tick_params(labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _limits(histograms: BandHistograms) -> tuple[float, float]:
    """The reflectance that is shown: nearly all pixels of nearly all bands, and the references."""
    shares = np.cumsum(histograms.counts, axis=1) / np.maximum(histograms.counts.sum(axis=1, keepdims=True), 1)
    low = min(float(EDGES[(shares > 0.002).argmax(axis=1)].min()), *(m - s for m, s in zip(histograms.mean, histograms.std, strict=True)))
    high = max(
        float(EDGES[(shares > 0.995).argmax(axis=1) + 1].max()), *(m + s for m, s in zip(histograms.mean, histograms.std, strict=True))
    )
    return max(low - 0.02, float(EDGES[0])), min(high + 0.02, float(EDGES[-1]))


def _figures(chips: pd.DataFrame) -> dict[str, str]:
    positive = chips["positive_share"]
    dates = sorted(date for date in chips["date"] if date)
    shown = {"chips": f"{len(chips):,}", "with class 1": f"{int((positive > 0).sum()):,}"}
    if positive.notna().any():
        shown["class 1, of all pixels"] = f"{100 * positive.mean():.1f} %"
    if dates:
        shown["acquired"] = dates[0] if dates[0] == dates[-1] else f"{dates[0][:7]} to {dates[-1][:7]}"
    if wrong := int((chips["error"] != "").sum()):
        shown["with an error"] = f"{wrong:,}"
    return shown


def _split_row(name: str, chips: pd.DataFrame) -> dict[str, Any]:
    dates = sorted(date for date in chips["date"] if date)
    return {
        "split": name,
        "chips": len(chips),
        "with class 1": int((chips["positive_share"] > 0).sum()),
        "class 1, % of pixels": float(100 * chips["positive_share"].mean()),
        "tiles": chips.loc[chips["tile"] != "", "tile"].nunique(),
        "first date": dates[0] if dates else None,
        "last date": dates[-1] if dates else None,
    }
