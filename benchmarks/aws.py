"""The rehearsal of AWS: how long it takes to come up, to deploy and test a model there, and to map a whole granule.

    python benchmarks/aws.py

Needs a burn-scar model in production in the user's home folder (make run), and no rehearsal that is up. Seconds of whole commands, as
a user waits for them; the granule is 3660 × 3660 pixels, six band files, to the mask on disk, through an async endpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

ROOT = Path(__file__).resolve().parents[1]
SIZE = 3660
BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
GRANULE = "HLS.S30.T10TGS.2018285T190331.v2.0"
AWS = ("--stack", "aws", "--rehearse")


def run(*arguments: str, kind: str = "realtime") -> float:
    """Seconds that a command of run.py took."""
    environment = {**os.environ, "HLS_AWS_KIND": kind}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"run.py {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def deployed(folder: Path, kind: str) -> tuple[float, dict[str, float]]:
    """Seconds of a whole deployment with its inference test, and of its steps."""
    seconds = run(*AWS, "--json", str(folder / "summary.json"), kind=kind)
    return seconds, json.loads((folder / "summary.json").read_text())["timings_s"]


def granule(folder: Path) -> Path:
    """Six band files of noise around what bare soil reflects, deflated."""
    random = np.random.default_rng(0)
    place = {"crs": "EPSG:32610", "transform": rasterio.transform.from_origin(600000, 4420000, 30, 30), "nodata": -9999}
    target = folder / GRANULE
    target.mkdir()
    for number, band in enumerate(BANDS):
        values = random.normal(800 + 400 * number, 120, (SIZE, SIZE)).astype(np.int16)
        with rasterio.open(
            target / f"{GRANULE}.{band}.tif", "w", driver="GTiff", count=1, height=SIZE, width=SIZE, dtype="int16", compress="deflate",
            tiled=True, **place,
        ) as file:  # fmt: skip
            file.write(values, 1)
    return target


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hls-bench-") as name:
        folder = Path(name)
        load = Path("/proc/loadavg").read_text().split()[0]
        try:
            figures = measured(folder)
        finally:
            run("rehearsal", "down")
    print(f"load {load} at the start, {Path('/proc/loadavg').read_text().split()[0]} at the end")
    for what, seconds in figures.items():
        print(f"{what:<60} {seconds:6.1f} s")


def measured(folder: Path) -> dict[str, float]:
    figures = {"rehearsal up": run("rehearsal", "up")}
    for kind in ("realtime", "async"):
        seconds, steps = deployed(folder, kind)
        figures[f"--stack aws --rehearse, {kind}, the rehearsal being up"] = seconds
        figures[f"  {kind}, step deploy: in service, first test"] = steps["deploy"]
        figures[f"  {kind}, step test_endpoint: all test chips"] = steps["test_endpoint"]
    figures["the same again, realtime, nothing changed"] = deployed(folder, "realtime")[0]
    scene = granule(folder)
    ask = ("--endpoint", "hls-burn-scars-async", "--rehearse", "--out", str(folder / "mask.tif"))
    figures["predict, a granule through the async endpoint"] = run("predict", str(scene), *ask)
    figures["endpoints --delete"] = run("endpoints", *AWS, "--delete", "hls-burn-scars")
    figures["rehearsal down"] = run("rehearsal", "down")
    figures["--stack aws --rehearse from nothing"] = deployed(folder, "realtime")[0]
    return figures


if __name__ == "__main__":
    main()
