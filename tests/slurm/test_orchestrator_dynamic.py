"""Dynamic pipelines on a real cluster: isolated steps are jobs of their own, and end with their pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacks.slurm.states import JobState
from tests.slurm.bench import Bench


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, str]:
    """Side by side on the cluster. Each takes a CPU for the pipeline and one for its step: more at once, and nothing would go on."""
    from tests.slurm import pipelines

    waits = {"time": "20"}  # not to be told to save while a busy machine gets to them
    return {
        "grows": bench.submit(pipelines.grows),
        "fails": bench.submit(pipelines.grows_and_fails),
        "cancelled": bench.submit(pipelines.grows_and_waits, 900, slurm=waits),
        "stopped": bench.submit(pipelines.grows_and_waits, 900, slurm=waits),
        "requeued": bench.submit(pipelines.grows_and_waits, 40, slurm=waits),
    }


def isolated_waits(bench: Bench, run_id: str) -> Any:
    """The run, once its isolated step is at work."""
    return bench.wait(run_id, lambda run: "wait" in run.steps and "waiting" in "".join(log.read_text() for log in logs(bench, run)))


def logs(bench: Bench, run: Any) -> list[Path]:
    return list(bench.folder_of(run).glob("isolated/*/steps/wait/log"))


def test_isolated_steps_are_jobs(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["grows"])
    assert (run.status.value, set(bench.statuses(run).values())) == ("completed", {"completed"})
    assert len(list(bench.folder_of(run).glob("isolated/*/jobs.json"))) == 2


def test_the_pipeline_fails_with_its_isolated_step(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["fails"])
    assert (run.status.value, bench.statuses(run)) == ("failed", {"fail": "failed"})
    assert "this step fails" in bench.reason(run, "fail")
    assert run.get_body().status_reason == "step fail: ValueError: this step fails"


def test_isolated_steps_end_with_a_pipeline_that_was_cancelled(bench: Bench, runs: dict[str, str]) -> None:
    run = isolated_waits(bench, runs["cancelled"])
    bench.slurm.cancel([run.run_metadata["slurm_jobs"]["pipeline"]])
    run = bench.wait(runs["cancelled"])
    assert (run.status.value, bench.statuses(run)) == ("failed", {"wait": "cancelled"})


@pytest.mark.parametrize("graceful", [True, False])
def test_stopping_a_dynamic_run_stops_its_isolated_steps(bench: Bench, runs: dict[str, str], graceful: bool) -> None:
    from zenml.utils.run_utils import stop_run

    from tests.slurm.pipelines import grows_and_waits

    run_id = runs["stopped"] if graceful else bench.submit(grows_and_waits, 900)
    stop_run(isolated_waits(bench, run_id), graceful=graceful)
    run = bench.wait(run_id)
    assert (run.status.value, bench.statuses(run)) == ("stopped", {"wait": "stopped"})


def test_a_pipeline_that_slurm_restarts_goes_on_with_the_step_it_had_submitted(bench: Bench, runs: dict[str, str]) -> None:
    run = isolated_waits(bench, runs["requeued"])
    bench.slurm.requeue(run.run_metadata["slurm_jobs"]["pipeline"])
    bench.wait(runs["requeued"], lambda run: bench.job(run, "pipeline").restarts == 1)
    run = bench.wait(runs["requeued"])
    assert (run.status.value, bench.statuses(run)) == ("completed", {"wait": "completed"})
    assert run.steps["wait"].version == 1
    assert len(logs(bench, run)) == 1
    assert bench.job(run, "pipeline").state is JobState.COMPLETED
