"""Chips a second through inventory and validation, on synthetic chips of 512 × 512 pixels.

    python benchmarks/validation.py [--chips 200] [--size 512] [--stored deflate|plain] [--json FILE]

Chips are generated once, a few of them are varied by a constant into as many files as asked for (generating is not what is
measured), and each is a file of its own with a mask of its own, so no content is read twice. deflate: int16 × 10000, as our own chips;
plain: float32 reflectance without compression. The files are in the page cache, as
freshly fetched ones are. Great Expectations' import is told apart: it is paid once a process, whatever the number of chips.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hls_foundry.chips.inventory import build_inventory
from hls_foundry.chips.splits import split_chips
from hls_foundry.chips.synthetic import generate
from hls_foundry.config import load_config
from hls_foundry.validation.run import check

SEEDS = 16  # chips generated; the rest are these plus a constant


def make_chips(root: Path, chips: int, size: int, stored: str) -> int:
    """A data set of `chips` chips in the hls_burn_scars layout; returns the bytes on disk."""
    generate("burn_scars", root / "seeds", chips=min(SEEDS, chips), size=size, seed=1)
    seeds = sorted((root / "seeds").rglob("*_merged.tif"))
    folder = root / "chips" / "training"
    folder.mkdir(parents=True)
    for number in range(chips):
        image = seeds[number % len(seeds)]
        name = f"subsetted_{size}x{size}_HLS.S30.T{10 + number % 50:02d}TGS.{2016 + number % 8}{1 + (number * 37) % 365:03d}.v{number}"
        for path, ending in ((image, "_merged.tif"), (image.with_name(image.name.replace("_merged", ".mask")), ".mask.tif")):
            with rasterio.open(path) as dataset:
                pixels, profile = dataset.read(), dataset.profile
            if ending == "_merged.tif":
                pixels = np.where(pixels == -9999, pixels, pixels + number // len(seeds)).astype(pixels.dtype)
                if stored == "plain":
                    pixels = np.where(pixels == -9999, -9999, pixels / 10000).astype("float32")
                    profile = {key: value for key, value in profile.items() if key not in ("compress", "predictor", "zlevel")}
                    profile["dtype"] = "float32"
            with rasterio.open(folder / f"{name}{ending}", "w", **profile) as copy:
                copy.write(pixels)
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(root: Path) -> dict[str, float]:
    """Seconds of each part, validation once with the import of Great Expectations and once without."""
    config = load_config(ROOT / "configs", task="burn_scars", overrides=("validation.max_bad_share=1.0",))
    seconds: dict[str, float] = {}

    def timed(name: str, work):  # type: ignore[no-untyped-def]
        started, processor = time.perf_counter(), time.process_time()
        result = work()
        seconds[name] = time.perf_counter() - started
        seconds[f"{name}, processor"] = time.process_time() - processor
        return result

    def import_gx() -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations  # noqa: F401

    inventory = timed("inventory", lambda: build_inventory(root / "chips", config.task, config.data))
    timed("import of Great Expectations", import_gx)
    report = timed("validation", lambda: check(inventory, None, config.task, config.validation, config.data))
    splits = timed("split", lambda: split_chips(report.inventory, config.data))
    timed("validation with splits, again", lambda: check(inventory, splits, config.task, config.validation, config.data))
    seconds["chips"] = len(inventory.table)
    seconds["page_bytes"] = len(report.docs_html.encode())
    return seconds


def main() -> None:
    """Make the chips, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--stored", choices=["deflate", "plain"], default="deflate")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hls-bench-") as folder:
        size = make_chips(Path(folder), arguments.chips, arguments.size, arguments.stored)
        seconds = measure(Path(folder))
    chips = seconds["chips"]
    both = seconds["inventory"] + seconds["validation"]
    figures = {
        "chips": chips,
        "size_px": arguments.size,
        "stored": arguments.stored,
        "megabytes": round(size / 1e6, 1),
        "cores": os.cpu_count(),
        "inventory_s": round(seconds["inventory"], 2),
        "import_gx_s": round(seconds["import of Great Expectations"], 2),
        "validation_s": round(seconds["validation"], 2),
        "validation_again_s": round(seconds["validation with splits, again"], 2),
        "inventory_cpu_s": round(seconds["inventory, processor"], 2),
        "validation_cpu_s": round(seconds["validation, processor"], 2),
        "inventory_chips_per_s": round(chips / seconds["inventory"], 1),
        "chips_per_s": round(chips / both, 1),
        "chips_per_s_with_import": round(chips / (both + seconds["import of Great Expectations"]), 1),
        "page_kilobytes": round(seconds["page_bytes"] / 1e3),
    }
    for name, value in figures.items():
        print(f"{name:>26}  {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
