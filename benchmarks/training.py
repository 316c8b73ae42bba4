"""Training as it is: samples/s of the real loop, and the share of this machine's matrix-product peak that it reaches.

    python benchmarks/training.py [--models tiny v1_100] [--precisions bf16 fp32] [--steps 12] [--batch-size 8] [--json FILE]

A sample's floating-point operations are counted by torch.utils.flop_counter over the forward and backward pass of the very model
(224 px, FCN head with auxiliary head, Dice: the recipe). Samples/s are the median over the loop's own steps: reading, cropping and turning
chips, forward, backward, clipping, AdamW and the metrics line included; the first steps, which warm up, are left out. The peak
is torch's own matrix product in the same process, with the same threads, before and after; the larger counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hls_foundry.chips.layouts import find_chips
from hls_foundry.chips.synthetic.writer import generate
from hls_foundry.config import FoundryConfig, load_config
from hls_foundry.models.segmenter import build_segmenter
from hls_foundry.training.data import Batch
from hls_foundry.training.loop import train
from hls_foundry.training.losses import SegmentationLoss, TrainedLoss
from hls_foundry.training.request import TrainingRequest

VARIANTS = {"tiny": "v2_tiny_tl", "v1_100": "v1_100"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WARM_UP = 3


def matmul_peak(dtype: torch.dtype, side: int = 2048, seconds: float = 2.0) -> float:
    """FLOP/s of the best of as many products of two `side`² matrices as fit in `seconds`."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def flops_per_sample(config: FoundryConfig) -> float:
    """Of a forward and backward pass with one crop."""
    size = config.training.crop_size
    loss = SegmentationLoss(config.training.loss)
    model = TrainedLoss(build_segmenter(config.model), loss, config.model.auxiliary_weight)
    batch = Batch(torch.randn(1, 6, size, size), torch.zeros(1, size, size, dtype=torch.int64))
    with FlopCounterMode(display=False) as counter:
        model(batch, loss.counts(batch.labels)).backward()
    return float(counter.get_total_flops())


def chips_table(folder: Path) -> Path:
    generate("burn_scars", folder, chips=12, size=256, seed=1)
    rows = [
        {"chip": chip.name, "image": chip.image, "mask": chip.mask, "split": "validation" if number == 0 else "train"}
        for number, chip in enumerate(find_chips(folder, "hls_burn_scars"))
    ]
    pd.DataFrame(rows).to_csv(folder / "splits.csv", index=False)
    return folder / "splits.csv"


def measure(model: str, precision: str, table: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    overrides = (
        f"model.variant={VARIANTS[model]}", "model.weights=none", f"training.precision={precision}",
        f"training.batch_size={options.batch_size}",
        f"training.max_steps={options.steps}", f"training.epochs={options.steps * options.batch_size}", "training.validate_every=1000000",
    )  # fmt: skip
    config = load_config(ROOT / "configs", task="burn_scars", source=str(table.parent), overrides=overrides)
    before = matmul_peak(DTYPES[precision])
    with tempfile.TemporaryDirectory() as folder:
        request = TrainingRequest(
            task=config.task, data=config.data, model=config.model, training=config.training, inference=config.inference,
            splits_table=table, root=table.parent, folder=Path(folder),
        )  # fmt: skip
        result = train(request, progress=False)
    peak = max(before, matmul_peak(DTYPES[precision]))
    rates = [record["samples_per_s"] for record in result.history if record["kind"] == "train"][WARM_UP:]
    rate, flops = statistics.median(rates), flops_per_sample(config)
    return {
        "model": f"{VARIANTS[model]} + fcn", "precision": result.precision, "threads": result.threads, "batch_size": options.batch_size,
        "samples_per_s": round(rate, 2), "fastest": round(max(rates), 2), "gflop_per_sample": round(flops / 1e9, 2),
        "gflop_per_s": round(rate * flops / 1e9, 1), "peak_gflop_per_s": round(peak / 1e9, 1),
        "share_of_peak": round(rate * flops / peak, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: more than the {WARM_UP} that warm up")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        table = chips_table(Path(folder) / "chips")
        print(f"{'model':<18}{'precision':>10}{'samples/s':>11}{'GFLOP/sample':>14}{'GFLOP/s':>9}{'peak':>8}{'share':>8}")
        for model in options.models:
            for precision in options.precisions:
                row = measure(model, precision, table, options)
                rows.append(row)
                print(
                    f"{row['model']:<18}{row['precision']:>10}{row['samples_per_s']:>11.2f}{row['gflop_per_sample']:>14.2f}"
                    f"{row['gflop_per_s']:>9.0f}{row['peak_gflop_per_s']:>8.0f}{row['share_of_peak']:>8.1%}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    else:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
