"""Two nodes against one: samples/s of the real loop across nodes of the rehearsal cluster, and the scaling efficiency.

    python benchmarks/nodes.py [--steps 20] [--rounds 2] [--batch-size 8] [--json FILE]

The nodes of a rehearsal cluster share this machine, so each process computes with one thread, pinned to a core of its own: one
node is one core, two nodes are two. Efficiency is samples/s of two nodes over twice those of one, with the same batch over all nodes
(strong scaling) and with the same batch on each (weak). Cores that share caches, memory and power slow each other down without
exchanging anything: "two apart" are two trainings at the same time that know nothing of each other, and the share of their sum is
what the exchange between nodes leaves. The order of the runs turns round from round to round; a rate is the median over
the steps of all rounds, without those that warm up, and "undisturbed" the rate that one step in ten exceeds, which on a machine
with other work to do says more. The load before each run is told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd

from hls_foundry.chips.layouts import find_chips
from hls_foundry.chips.synthetic.writer import generate
from hls_foundry.config import load_config
from hls_foundry.training.request import TrainingRequest
from stacks.slurm.rehearsal import Cluster
from stacks.slurm.rehearsal_config import default_shape

WARM_UP = 4
PATIENCE_S = 900
LAUNCH = (
    "import sys; from pathlib import Path; from hls_foundry.training.launcher import launch; "
    "from hls_foundry.training.request import TrainingRequest; launch(TrainingRequest.load(Path(sys.argv[1])))"
)


@dataclass(frozen=True)
class Run:
    """`trainings` at the same time, each on `nodes` nodes with `batch_size` samples a step over all of them."""

    name: str
    trainings: int
    nodes: int
    batch_size: int


def chips_table(folder: Path) -> Path:
    generate("burn_scars", folder, chips=12, size=256, seed=1)
    rows = [
        {"chip": chip.name, "image": chip.image, "mask": chip.mask, "split": "validation" if number == 0 else "train"}
        for number, chip in enumerate(find_chips(folder, "hls_burn_scars"))
    ]
    pd.DataFrame(rows).to_csv(folder / "splits.csv", index=False)
    return folder / "splits.csv"


def make_request(table: Path, folder: Path, batch_size: int, options: argparse.Namespace) -> TrainingRequest:
    overrides = (
        f"model.variant={options.variant}", "model.weights=none", f"training.precision={options.precision}",
        f"training.batch_size={batch_size}", f"training.max_steps={options.steps}", f"training.epochs={options.steps * batch_size}",
        "training.validate_every=1000000",
    )  # fmt: skip
    config = load_config(ROOT / "configs", task="burn_scars", source=str(table.parent), overrides=overrides)
    return TrainingRequest(
        task=config.task, data=config.data, model=config.model, training=config.training, inference=config.inference,
        splits_table=table, root=table.parent, folder=folder,
    )  # fmt: skip


def slurm(cluster: Cluster, *command: str) -> str:
    done = subprocess.run(command, env={**os.environ, **cluster.environment}, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def submit(cluster: Cluster, request: TrainingRequest, nodes: int, core: int) -> None:
    """A job that trains as `request` says; on one node its process is pinned to `core` from the start."""
    request.folder.mkdir(parents=True)
    request.save(request.folder / "asked.json")
    pinned = ["taskset", "--cpu-list", str(core)] if nodes == 1 else []
    program = shlex.join([*pinned, sys.executable, "-c", LAUNCH, str(request.folder / "asked.json")])
    script = request.folder / "job.sh"
    script.write_text(f"#!/bin/bash\nunset SLURM_EXPORT_ENV\nexport OMP_NUM_THREADS=1\ncd {shlex.quote(str(ROOT))}\n{program}\n")
    options = ["--ntasks-per-node=1", "--cpus-per-task=1", "--mem=3000", "--export=NONE", f"--output={request.folder / 'log'}"]
    slurm(cluster, "sbatch", f"--nodes={nodes}", *options, str(script))


def pin_workers(folder: Path, cores: list[int], pinned: set[int]) -> None:
    """Pin each worker of a training across nodes to the core of its rank, as soon as it says that it is there."""
    for report in folder.glob("workers/rank-*.json"):
        worker = json.loads(report.read_bytes())
        if worker["pid"] in pinned or worker["state"] != "running":
            continue
        for thread in Path(f"/proc/{worker['pid']}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[worker["rank"]]})
        pinned.add(worker["pid"])


def rates(cluster: Cluster, run: Run, table: Path, folder: Path, options: argparse.Namespace) -> list[list[float]]:
    """Samples/s of each step after the first ones, a list a training."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    requests = [make_request(table, folder / f"{run.name}-{number}", run.batch_size, options) for number in range(run.trainings)]
    for core, request in zip(cores, requests, strict=False):
        submit(cluster, request, run.nodes, core)
    deadline, pinned = time.monotonic() + PATIENCE_S, set[int]()
    while slurm(cluster, "squeue", "--noheader"):
        if time.monotonic() > deadline:
            raise SystemExit(f"{run.name} has not ended after {PATIENCE_S} s: see {folder}")
        if run.nodes > 1:
            pin_workers(requests[0].folder, cores, pinned)
        time.sleep(0.1)
    found = []
    for request in requests:
        if not (request.folder / "result.json").is_file():
            raise SystemExit(f"{run.name} failed:\n{(request.folder / 'log').read_text()}")
        lines = [json.loads(line) for line in (request.folder / "metrics.jsonl").read_text().splitlines()]
        found.append([line["samples_per_s"] for line in lines if line["kind"] == "train"][WARM_UP:])
    return found


def measure(cluster: Cluster, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a run, with its efficiencies."""
    table = chips_table(folder / "chips")
    batch = options.batch_size
    runs = [Run("one node", 1, 1, batch), Run("two apart", 2, 1, batch), Run("two nodes, same batch over all", 1, 2, batch),
            Run("two nodes, same batch on each", 1, 2, 2 * batch)]  # fmt: skip
    steps: dict[Run, list[list[float]]] = {run: [] for run in runs}
    for number in range(options.rounds):
        for run in runs if number % 2 == 0 else reversed(runs):
            load = os.getloadavg()[0]
            found = rates(cluster, run, table, folder / str(number), options)
            steps[run] += found
            each = " + ".join(f"{statistics.median(training):.2f}" for training in found)
            print(f"round {number + 1}: {run.name:<32}{each:>14} samples/s (load before: {load:.1f})", file=sys.stderr, flush=True)
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "batch_size": run.batch_size}
        for name, share in (("median", 0.5), ("undisturbed", 0.9)):
            total, one, apart = (quantile(other, steps[other], share) for other in (run, runs[0], runs[1]))
            row |= {
                name: round(total, 2),
                f"{name}_efficiency": round(total / (2 * one), 3),
                f"{name}_of_two_apart": round(total / apart, 3),
            }
        rows.append(row)
    return rows


def quantile(run: Run, trainings: list[list[float]], share: float) -> float:
    """Samples/s of all trainings of `run` together, at the step that `share` of the steps are slower than."""
    ordered = sorted(itertools.chain.from_iterable(trainings))
    return run.trainings * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="v2_tiny_tl")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="of one node")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: more than the {WARM_UP} that warm up")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two nodes need two cores of this machine")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the cluster does not outlive this
    with tempfile.TemporaryDirectory() as home:
        cluster = Cluster(Path(home), default_shape(nodes=2, cpus=2))
        cluster.up()
        try:
            rows = measure(cluster, Path(home), options)
        finally:
            cluster.down()
    columns = "".join(f"{name:>{width}}" for name, width in (("efficiency", 12), ("of two apart", 14)))
    print(f"{'':<32}{'batch':>6}{'samples/s':>11}{columns}{'undisturbed':>13}{columns}")
    for row in rows:
        print(
            f"{row['run']:<32}{row['batch_size']:>6}"
            f"{row['median']:>11.2f}{row['median_efficiency']:>12.1%}{row['median_of_two_apart']:>14.1%}"
            f"{row['undisturbed']:>13.2f}{row['undisturbed_efficiency']:>12.1%}{row['undisturbed_of_two_apart']:>14.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    else:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
