"""Cold start of the endpoint, and what a request costs over the bare forward pass.

    python benchmarks/serving.py [--variant v2_tiny_tl] [--head unet] [--starts 5] [--requests 30] [--json FILE]

Cold start: from starting the process to the first 200 of /ping, with a model. Overhead: the client's p50 of one request after the other
(GeoTIFF body, int16, each reply format) less the model's forward passes over the same tiles in this process. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hls_foundry.chips.bands import BANDS
from hls_foundry.config import ModelConfig
from hls_foundry.endpoints.client import EndpointClient
from hls_foundry.inference.predictor import Predictor
from hls_foundry.inference.tiling import even_groups, place
from hls_foundry.models.bundle import BundleManifest, load_bundle, save_bundle
from hls_foundry.models.segmenter import build_segmenter

ROOT = Path(__file__).resolve().parents[1]
MEAN = (0.033, 0.057, 0.059, 0.232, 0.197, 0.119)
STD = (0.023, 0.027, 0.040, 0.078, 0.087, 0.072)
REPLIES = ("application/geo+json", "image/tiff", "application/x-npy", "image/png")


def write_bundle(folder: Path, variant: str, head: str) -> Path:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(variant=variant, head=head, head_channels=64))  # type: ignore[arg-type]
    manifest = BundleManifest(
        task="burn_scars", title="Burn scars", classes=("background", "burn scar"), bands=BANDS, scale=0.0001, mean=MEAN, std=STD,
        architecture=model.architecture(), tile=224, overlap=0.25, batch_size=4,
    )  # fmt: skip
    save_bundle(folder, model, manifest)
    return folder


def scene(size: int) -> bytes:
    """int16 GeoTIFF with blobs of some 30 pixels, as a chip has."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 6, size // 32 + 2, size // 32 + 2, generator=generator)
    pattern = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0].numpy()
    pixels = ((np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * pattern).clip(0.001, 1) * 10000).astype(np.int16)
    profile = {"driver": "GTiff", "count": 6, "height": size, "width": size, "dtype": "int16", "crs": "EPSG:32610"}
    with MemoryFile() as memory:
        with memory.open(**profile, transform=from_origin(600000, 4420000, 30, 30)) as dataset:
            dataset.write(pixels)
        return bytes(memory.read())


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[EndpointClient, float]]:
    """A server process: a client of it, and the seconds from its start to /ping 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "SM_MODEL_DIR": str(bundle), "SAGEMAKER_BIND_TO_PORT": str(port), "HLS_HOST": "127.0.0.1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hls_foundry.serving", "serve"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        with EndpointClient(f"http://127.0.0.1:{port}") as client:
            while not client.ping():
                if process.poll() is not None:
                    raise SystemExit("the server ended: run python -m hls_foundry.serving serve by hand to see why")
                time.sleep(0.01)
            yield client, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def forward_ms(predictor: Predictor, size: int, repeats: int) -> float:
    """Median milliseconds of the model alone on the tiles of a size × size scene, in the predictor's batches."""
    tiles = len(place(size, predictor.tile, predictor.overlap, predictor.multiple).starts)
    groups = [len(group) for _ in range(tiles) for group in even_groups(list(range(tiles)), predictor.batch_size)]
    batch = torch.randn(predictor.batch_size, 6, predictor.tile, predictor.tile)
    taken = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=predictor.precision == "bf16"):
        for _ in range(repeats + 2):
            started = time.perf_counter()
            for count in groups:
                predictor.model(batch[:count])
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:]) * 1e3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"variant": options.variant, "head": options.head, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "model", options.variant, options.head)
        starts = []
        for _ in range(options.starts):
            with serving(bundle) as (_, seconds):
                starts.append(round(seconds, 3))
        results["cold_start_s"] = {"median": statistics.median(starts), "all": starts}
        predictor = Predictor(load_bundle(bundle))
        results["precision"] = predictor.precision
        rows = []
        for size in (224, 512):
            body = scene(size)
            # On a thread, as in the server: the main thread's OpenMP workers spin while they wait, and on cores that have other work
            # a forward pass then takes several times as long.
            with ThreadPoolExecutor(1) as thread:
                forward = thread.submit(forward_ms, predictor, size, options.requests).result()
            with serving(bundle) as (client, _):
                for reply in REPLIES:
                    taken = [client.invoke(body, accept=reply) for _ in range(options.requests + 3)][3:]
                    assert all(answer.status == 200 for answer in taken)
                    p50 = statistics.median(answer.seconds for answer in taken) * 1e3
                    rows.append({"size": size, "reply": reply, "forward_ms": forward, "p50_ms": p50, "overhead_ms": p50 - forward})
        results["requests"] = rows
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="v2_tiny_tl")
    parser.add_argument("--head", default="unet")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(options)
    print(f"cold start, median of {options.starts}: {results['cold_start_s']['median']:.2f} s ({results['precision']}, {options.variant})")
    print(f"{'pixels':>7}  {'reply':<22} {'forward ms':>10} {'p50 ms':>8} {'overhead ms':>11}")
    for row in results["requests"]:
        print(f"{row['size']:>7}  {row['reply']:<22} {row['forward_ms']:>10.1f} {row['p50_ms']:>8.1f} {row['overhead_ms']:>11.1f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
