"""What the Slurm orchestrator adds to bare sbatch, on a rehearsal cluster of its own: submission time, a step job's overhead, 40 steps.

    python benchmarks/hpc.py [--rounds 7] [--steps 40] [--json FILE]

Submission: a pipeline of five steps, from the call of the pipeline to its return with all jobs queued, in turn with the five sbatch
calls of the same scripts with the same dependencies; the cluster is full, so nothing runs meanwhile. Overhead of a step's job: from the
supervisor's start of the step's process to its end, less the one second that the step sleeps; its jobs run one after the other.
Processes of the benchmark itself have ZenML and its store open, as run.py has when it submits.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":  # before ZenML's first import, which reads the environment; jobs import this file, too
    FOLDER = tempfile.TemporaryDirectory(prefix="hls-bench-")
    os.environ["ZENML_CONFIG_PATH"], os.environ["HLS_FOUNDRY_HOME"] = f"{FOLDER.name}/zenml", FOLDER.name
    os.environ.pop("ZENML_ACTIVE_STACK_ID", None)

from zenml import pipeline, step

SLEEP_S = 1.0


@step(enable_cache=False)
def sleep(number: int) -> Annotated[int, "number"]:
    """The step's own work."""
    time.sleep(SLEEP_S)
    return number


@step(enable_cache=False)
def nothing() -> Annotated[int, "number"]:
    return 1


@pipeline
def five() -> None:
    """A chain, as the train pipeline is."""
    number: Any = 1
    for name in ("a", "b", "c", "d", "e"):
        number = sleep(number, id=name)


@pipeline
def many(count: int) -> None:
    """All side by side."""
    for number in range(count):
        nothing(id=f"step_{number:03d}")


class Measurement:
    """A stack on the cluster, with a store of its own."""

    def __init__(self, folder: Path, slurm_conf: Path) -> None:
        from hls_foundry.endpoints.settings import PublishSettings
        from stacks.definition import Component, StackDefinition
        from stacks.registry import register_stack, use_stack
        from stacks.slurm.client import Slurm
        from stacks.slurm.transport import LocalTransport

        configuration = {"folder": str(folder / "runs"), "slurm_conf": str(slurm_conf), "partition": "batch", "synchronous": False}
        orchestrator = Component(type="orchestrator", flavor="slurm", configuration=configuration)
        store = Component(type="artifact_store", flavor="local")
        publish = PublishSettings(folder=str(folder))
        use_stack(register_stack(StackDefinition(name="benchmark", file=folder, publish=publish, components=(orchestrator, store))))
        self.folder = folder
        self.slurm = Slurm(LocalTransport({"SLURM_CONF": str(slurm_conf)}))
        self.environment = {**os.environ, "SLURM_CONF": str(slurm_conf)}

    def submit(self, which: Any, *arguments: Any) -> tuple[Any, float]:
        """The run and the seconds that its submission took."""
        settings = {"orchestrator": {"time": "10"}, "resources": {"cpu_count": 1, "memory": "600MB"}}
        configured = which.with_options(settings=settings)
        begun = time.perf_counter()
        run = configured(*arguments)
        seconds = time.perf_counter() - begun
        from zenml.client import Client

        return Client().get_pipeline_run(run.id), seconds

    def bare(self, folder: Path) -> float:
        """Seconds of the sbatch calls of the scripts in a run's folder, as a chain; the jobs are cancelled."""
        jobs: list[str] = []
        begun = time.perf_counter()
        for script in sorted(folder.glob("steps/*/job.sh")):
            after = ["--dependency", f"afterok:{jobs[-1]}"] if jobs else []
            command = ["sbatch", "--parsable", *after, str(script)]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
            jobs.append(done.stdout.strip())
        seconds = time.perf_counter() - begun
        self.slurm.cancel([int(job) for job in jobs])
        return seconds

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing else starts during the body."""
        script = self.folder / "full.sh"
        script.write_text("#!/bin/bash\n#SBATCH --nodes=2 --exclusive --output=/dev/null\nsleep 3600\n")
        job = self.slurm.submit(script)
        try:
            yield
        finally:
            self.slurm.cancel([job])

    def wait(self, run: Any) -> float:
        """Seconds until the run's end is written."""
        begun = time.perf_counter()
        while not (Path(run.run_metadata["slurm_folder"]) / "outcome.json").exists():
            time.sleep(0.5)
        return time.perf_counter() - begun


def processor_seconds() -> float:
    """Of this process and of those that it has waited for; other load on the machine does not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def submission(bench: Measurement, rounds: int) -> dict[str, float]:
    """Seconds of the pipeline's submission and of the bare one, in turn."""
    from stacks.slurm.freeze import freeze

    ours, bare, frozen, processor = [], [], [], []
    with bench.full():
        for _ in range(rounds + 1):  # the first registers the pipeline and fills the caches
            before = processor_seconds()
            run, seconds = bench.submit(five)
            processor.append(processor_seconds() - before)
            ours.append(seconds)
            bare.append(bench.bare(Path(run.run_metadata["slurm_folder"])))
            bench.slurm.cancel([*run.run_metadata["slurm_jobs"].values(), run.run_metadata["slurm_closing"]])
            begun = time.perf_counter()
            freeze(ROOT)
            frozen.append(time.perf_counter() - begun)
    return {
        "submission_s": median(ours[1:]),
        "submission_cpu_s": median(processor[1:]),
        "submission_first_s": ours[0],
        "submission_slowest_s": max(ours[1:]),
        "bare_sbatch_s": median(bare[1:]),
        "overhead_over_sbatch_s": median(ours[1:]) - median(bare[1:]),
        "of_it_freeze_s": median(frozen[1:]),
    }


def step_overhead(bench: Measurement) -> dict[str, float]:
    """What a step's job takes beyond the step's own work."""
    run, _ = bench.submit(five)
    bench.wait(run)
    folder = Path(run.run_metadata["slurm_folder"])
    runs = [json.loads(path.read_text())["runs"][-1] for path in folder.glob("steps/*/state.json")]
    elapsed = [(datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["started"])).total_seconds() for one in runs]
    jobs = bench.slurm.jobs(run.run_metadata["slurm_jobs"].values()).values()
    return {
        "step_overhead_s": median(elapsed) - SLEEP_S,
        "step_overhead_most_s": max(elapsed) - SLEEP_S,
        "step_cpu_s": median(one["cpu_seconds"] for one in runs),
        "job_overhead_slurm_s": median(job.elapsed_s for job in jobs) - SLEEP_S,
    }


def wide(bench: Measurement, steps: int) -> dict[str, float]:
    """A pipeline of many steps side by side."""
    run, seconds = bench.submit(many, steps)
    completed = bench.wait(run)
    logs = "".join(path.read_text() for path in Path(run.run_metadata["slurm_folder"]).rglob("log"))
    from zenml.client import Client

    statuses = [one.status.value for one in Client().get_pipeline_run(run.id).steps.values()]
    return {
        "wide_steps": steps,
        "wide_submission_s": seconds,
        "wide_completed_s": completed,
        "wide_steps_completed": statuses.count("completed"),
        "wide_database_locked": len(re.findall("database is locked", logs)),
    }


def measure(folder: Path, rounds: int, steps: int) -> dict[str, float]:
    """All figures, on a cluster of two nodes with as many CPUs each as this machine has."""
    from stacks.slurm.rehearsal import Cluster
    from stacks.slurm.rehearsal_config import default_shape

    cluster = Cluster(folder, default_shape())
    cluster.up()
    try:
        bench = Measurement(folder, cluster.slurm_conf)
        load = os.getloadavg()[0]
        figures = {"cores": os.cpu_count() or 1, "load_before": load, "rounds": rounds}
        return figures | submission(bench, rounds) | step_overhead(bench) | wide(bench, steps)
    finally:
        cluster.down()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from cli.session import start_zenml

    with FOLDER as name:
        start_zenml()
        figures = {key: round(value, 3) for key, value in measure(Path(name), arguments.rounds, arguments.steps).items()}
    for name, value in figures.items():
        print(f"{name:>24}  {value:g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
