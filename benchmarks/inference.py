"""Tiled prediction against the bare forward pass, and a whole scene streamed from file to file with its peak memory.

    python benchmarks/inference.py [--variant v2_tiny_tl] [--head unet] [--precision auto] [--size 3660] [--json FILE]

Mpixel/s of the bare forward pass and of the tiled passes count pixels of tiles, overlaps included: their ratio is what tiling costs
(cutting, normalising, blending, nodata). Scene Mpixel/s count each pixel of the scene once. The streamed scene runs in a process of its
own, whose peak resident memory is reported with all that it imports. Weights are random: the arithmetic is the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hls_foundry.chips.reader import ChipReader
from hls_foundry.config import ModelConfig
from hls_foundry.inference.predictor import Predictor
from hls_foundry.inference.tiling import place
from hls_foundry.models.segmenter import build_segmenter

MEAN = (0.033, 0.057, 0.059, 0.232, 0.197, 0.119)
STD = (0.023, 0.027, 0.040, 0.078, 0.087, 0.072)


def predictor(options: argparse.Namespace) -> Predictor:
    torch.manual_seed(0)
    config = ModelConfig(variant=options.variant, head=options.head, head_channels=options.head_channels)
    model = build_segmenter(config).eval()
    return Predictor(model, MEAN, STD, options.tile, options.overlap, options.batch_size, precision=options.precision)


def write_scene(path: Path, size: int) -> None:
    """Six int16 bands ×10000 with texture at several scales and a nodata corner, tiled and deflated as HLS products are."""
    generator = torch.Generator().manual_seed(0)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 6, "dtype": "int16", "nodata": -9999}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2, "interleave": "band"}
    georeference = {"crs": "EPSG:32610", "transform": from_origin(499_980, 4_500_000, 30, 30)}
    with rasterio.open(path, "w", **profile, **georeference) as dataset:
        for band, (mean, std) in enumerate(zip(MEAN, STD, strict=True), start=1):
            field = torch.zeros(1, 1, size, size)
            for step, weight in ((1, 0.15), (6, 0.4), (60, 0.9)):
                noise = torch.randn(1, 1, size // step + 2, size // step + 2, generator=generator)
                field += weight * torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
            values = ((mean + std * field[0, 0].numpy()).clip(0.001, 1.2) * 10_000).astype(np.int16)
            values[: size // 10, : size // 10] = -9999
            dataset.write(values, band)


def bare_forward(predict: Predictor, seconds: float) -> float:
    """Mpixel/s of the model alone on a ready batch, at the predictor's precision."""
    batch = torch.randn(predict.batch_size, 6, predict.tile, predict.tile)
    passes = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=predict.precision == "bf16"):
        predict.model(batch)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            predict.model(batch)
            passes += 1
        elapsed = time.perf_counter() - start
    return passes * batch.shape[0] * predict.tile**2 / elapsed / 1e6


def tile_pixels(predict: Predictor, size: int) -> int:
    axis = place(size, predict.tile, predict.overlap, predict.multiple)
    return len(axis.starts) ** 2 * axis.tile**2


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_tiling(options: argparse.Namespace) -> dict[str, Any]:
    """Bare and tiled passes in turn, so that what else the machine does meets both; the best of each counts."""
    predict = predictor(options)
    size = min(options.size, options.memory_size)
    pixels = (np.random.default_rng(0).standard_normal((6, size, size), np.float32) * 0.05 + 0.15).astype(np.float32)
    covered = tile_pixels(predict, size)
    predict.probabilities(pixels[:, : 2 * predict.tile, : 2 * predict.tile])
    bare, tiled = [], []
    for _ in range(options.repeats):
        bare.append(bare_forward(predict, options.seconds))
        tiled.append(timed(lambda: predict.probabilities(pixels)))
    bare.append(bare_forward(predict, options.seconds))
    rate = covered / min(tiled) / 1e6
    return {
        "precision": predict.precision,
        "threads": torch.get_num_threads(),
        "bare_tile_mpixel_s": max(bare),
        "memory_size": size,
        "memory_tile_mpixel_s": rate,
        "memory_scene_mpixel_s": size**2 / min(tiled) / 1e6,
        "memory_share_of_bare": rate / max(bare),
    }


def peak_memory_mb() -> float:
    """Of this process. Linux's VmHWM: getrusage's figure survives exec and would be the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def measure_stream(options: argparse.Namespace) -> dict[str, Any]:
    """The scene from file to file, in this fresh process."""
    start = time.perf_counter()
    predict = predictor(options)
    before = peak_memory_mb()
    predict.probabilities(np.zeros((6, predict.tile, predict.tile), np.float32))
    ready = time.perf_counter() - start
    seconds = []
    for _ in range(options.repeats):
        with ChipReader(options.scene) as reader:
            seconds.append(timed(lambda reader=reader: predict.predict_scene(reader, Path(options.scene).with_name("mask.tif"))))
    return {
        "stream_size": options.size,
        "stream_s": min(seconds),
        "stream_tile_mpixel_s": tile_pixels(predict, options.size) / min(seconds) / 1e6,
        "stream_scene_mpixel_s": options.size**2 / min(seconds) / 1e6,
        "stream_peak_rss_mb": peak_memory_mb(),
        "imported_rss_mb": before,
        "model_ready_s": ready,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="v2_tiny_tl")
    parser.add_argument("--head", default="unet", choices=["fcn", "unet"])
    parser.add_argument("--head-channels", type=int, default=64, help="64 is the demo's")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--tile", type=int, default=224)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=3660, help="pixels a side of the streamed scene")
    parser.add_argument("--memory-size", type=int, default=1568, help="pixels a side of the scene in memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each bare measurement")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--scene", help=argparse.SUPPRESS)  # the child's: stream this file
    options = parser.parse_args()
    if options.scene:
        print(json.dumps(measure_stream(options)))
        return
    figures: dict[str, Any] = {key: getattr(options, key) for key in ("variant", "head", "head_channels", "tile", "overlap", "batch_size")}
    figures |= measure_tiling(options)
    with tempfile.TemporaryDirectory(prefix="hls-inference-") as folder:
        scene = Path(folder) / "scene.tif"
        write_scene(scene, options.size)
        command = [sys.executable, __file__, *sys.argv[1:], "--scene", str(scene)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures |= json.loads(child.stdout)
    figures["stream_share_of_bare"] = figures["stream_tile_mpixel_s"] / figures["bare_tile_mpixel_s"]
    for key, value in figures.items():
        print(f"{key:24} {value:10.3f}" if isinstance(value, float) else f"{key:24} {value!s:>10}")
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
