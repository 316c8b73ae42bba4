"""The job that writes a run's end, on a real cluster: run again, run by several at once, lost, and without the store or the run."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.bench import Bench


@pytest.fixture(scope="module")
def ended(bench: Bench) -> Any:
    """A run that failed, with its end written."""
    from tests.slurm.pipelines import killed

    return bench.wait(bench.submit(killed))


def close(bench: Bench, run: Any, **environment: str) -> subprocess.Popen[str]:
    """Start the closing job's command by hand, as the job does: in the run's environment and code."""
    folder = bench.folder_of(run)
    script = f'source {folder}/environment; source {folder}/closing/environment; export PYTHONPATH={folder}/code; exec env "$@"'
    line = (folder / "closing" / "job.sh").read_text().splitlines()[-1].removeprefix("exec ").split()
    command = ["bash", "-c", script, "bash", *(f"{name}={value}" for name, value in environment.items()), *line]
    own = {**os.environ, "SLURM_CONF": str(bench.cluster.slurm_conf)}
    return subprocess.Popen(command, cwd=folder / "code", env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(bench: Bench, run: Any) -> Any:
    """What ZenML has of the run and its steps."""
    found = bench.run(str(run.id))
    steps = {name: (step.status, step.version, step.end_time, bench.reason(found, name)) for name, step in found.steps.items()}
    return found.status, found.end_time, found.get_body().status_reason, steps


def test_writing_the_end_again_even_twice_at_once_changes_nothing(bench: Bench, ended: Any) -> None:
    before, outcome = record(bench, ended), bench.outcome(ended)
    for process in [close(bench, ended), close(bench, ended)]:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "run failed" in output
    assert (record(bench, ended), bench.outcome(ended)) == (before, outcome)


def test_without_the_store_it_tries_for_a_while_and_says_how_to_go_on(bench: Bench, ended: Any, tmp_path: Path) -> None:
    (tmp_path / "share").write_text("a file where the shared folder should be")
    begun = time.monotonic()
    process = close(bench, ended, ZENML_STORE_URL=f"sqlite:///{tmp_path}/share/zenml.db", HLS_CLOSING_PATIENCE_S="20")
    errors = process.communicate(timeout=120)[1].strip().splitlines()
    assert process.returncode == 1
    assert time.monotonic() - begun > 5
    assert sum("trying again in" in line for line in errors) >= 2
    assert re.search(r"the end of the run could not be written in 20 s \(.*\); once that is mended: .*refresh", errors[-1])


def test_a_run_that_was_deleted_meanwhile_has_no_end_to_write(bench: Bench) -> None:
    from zenml.client import Client

    from tests.slurm.pipelines import killed

    with bench.full():
        run = bench.run(bench.submit(killed))
        Client().delete_pipeline_run(run.id)
    bench.nothing_left(run, 200)
    assert f"run {run.name} was deleted from ZenML" in (bench.folder_of(run) / "closing" / "log").read_text()
    assert bench.slurm.jobs([run.run_metadata["slurm_closing"]])[run.run_metadata["slurm_closing"]].state.ok


def test_a_closing_job_that_fell_out_can_be_requeued_or_made_up_for(bench: Bench) -> None:
    from zenml.utils.run_utils import refresh_run_status

    from tests.slurm.pipelines import killed

    run = bench.run(bench.submit(killed))
    bench.slurm.cancel([run.run_metadata["slurm_closing"]])
    bench.nothing_left(run, 200)
    assert bench.run(str(run.id)).status.value == "running"
    assert refresh_run_status(bench.run(str(run.id)), include_step_updates=True).status.value == "failed"
    run = bench.wait(str(run.id))
    assert bench.statuses(run) == {"die": "failed"}
    assert "SIGKILL" in bench.reason(run, "die")
