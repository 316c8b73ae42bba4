"""Pipelines on a real cluster, with ZenML's own client: what ZenML records must be what happened."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from zenml.enums import ExecutionMode

from hls_foundry.errors import FoundryError
from stacks.slurm.states import JobState
from tests.slurm.bench import Bench


@pytest.fixture(scope="module")
def runs(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs that do not disturb each other, submitted one after the other and on the cluster together."""
    from tests.slurm import pipelines

    note = tmp_path_factory.mktemp("notes")

    def branches(mode: ExecutionMode, seconds: float) -> str:
        return bench.submit(pipelines.branches, str(note / mode.value), seconds, execution_mode=mode)

    return {
        "fail fast": branches(ExecutionMode.FAIL_FAST, 90),
        "stop on failure": branches(ExecutionMode.STOP_ON_FAILURE, 15),
        "continue on failure": branches(ExecutionMode.CONTINUE_ON_FAILURE, 1),
        "killed": bench.submit(pipelines.killed),
        "too large": bench.submit(pipelines.too_large),
        "retried": bench.submit(pipelines.retried, str(note / "retried")),
        "diamond": bench.submit(pipelines.diamond),
    }


def test_a_diamond_of_steps_completes_and_says_what_it_cost(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["diamond"])
    assert run.status.value == "completed"
    assert set(bench.statuses(run).values()) == {"completed"}
    assert run.steps["add"].output.load() == 2
    cost = bench.outcome(run)["steps"]["add"]
    assert cost["job_id"] == run.run_metadata["slurm_jobs"]["add"]
    assert run.steps["add"].run_metadata["slurm"]["node_hours"] == cost["node_hours"] > 0
    assert 0 < cost["cpu_efficiency"] <= 1
    assert 10**8 < cost["max_rss_bytes"] < 10**9


def test_a_failing_step_ends_all_others_at_once_where_that_is_asked_for(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["fail fast"])
    assert run.status.value == "failed"
    statuses = bench.statuses(run)
    assert statuses["fail"] == "failed"
    assert statuses.get("wait", "cancelled") in ("cancelled", "stopped")
    assert not {"later", "add"} & set(statuses)
    assert [bench.outcome(run)["steps"][name]["state"] for name in ("wait", "later", "add")] == ["CANCELLED"] * 3
    assert "this step fails" in bench.reason(run, "fail")


def test_a_failing_step_lets_what_runs_end_where_that_is_asked_for(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["stop on failure"])
    assert run.status.value == "failed"
    assert bench.statuses(run) == {"one": "completed", "two": "completed", "fail": "failed", "wait": "completed"}
    assert [bench.outcome(run)["steps"][name]["state"] for name in ("wait", "later", "add")] == ["COMPLETED", "CANCELLED", "CANCELLED"]


def test_a_failing_step_leaves_other_branches_alone_where_that_is_asked_for(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["continue on failure"])
    assert run.status.value == "failed"
    assert bench.statuses(run) == {"one": "completed", "two": "completed", "fail": "failed", "wait": "completed", "later": "completed"}
    assert bench.outcome(run)["steps"]["add"]["state"] == "CANCELLED"


def test_a_step_that_was_killed_ends_as_failed_with_the_reason(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["killed"])
    assert (run.status.value, bench.statuses(run)) == ("failed", {"die": "failed"})
    assert "SIGKILL" in run.steps["die"].exception_info.traceback
    assert "step die" in run.get_body().status_reason


def test_a_step_that_takes_too_much_memory_ends_as_failed_though_it_had_retries_left(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["too large"])
    assert (run.status.value, bench.statuses(run)) == ("failed", {"take_memory": "failed"})
    assert "memory" in run.steps["take_memory"].exception_info.traceback


def test_a_failed_step_is_tried_again_in_the_same_run(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["retried"])
    assert (run.status.value, bench.statuses(run)) == ("completed", {"fail_at_first": "completed"})
    assert run.steps["fail_at_first"].version == 2


def test_a_restart_by_slurm_goes_on_in_the_same_step_run_and_a_retry_begins_another(bench: Bench, tmp_path: Path) -> None:
    from tests.slurm.pipelines import killed_and_restarted, restarted

    notes = {"hang_at_first": tmp_path / "restarted", "die_then_hang": tmp_path / "retried"}
    ids = {
        "hang_at_first": bench.submit(restarted, str(notes["hang_at_first"])),
        "die_then_hang": bench.submit(killed_and_restarted, str(notes["die_then_hang"])),
    }
    calls = {"hang_at_first": 1, "die_then_hang": 2}
    for step, run_id in ids.items():
        run = bench.wait(run_id, lambda _, step=step: notes[step].exists() and notes[step].read_text().count("\n") == calls[step])
        bench.slurm.requeue(run.run_metadata["slurm_jobs"][step])
    run = bench.wait(ids["hang_at_first"])
    assert (run.status.value, notes["hang_at_first"].read_text()) == ("completed", "0\n1\n")
    assert run.steps["hang_at_first"].version == 1  # no retry was used up
    assert bench.outcome(run)["steps"]["hang_at_first"]["restarts"] == 1
    run = bench.wait(ids["die_then_hang"])
    assert (run.status.value, notes["die_then_hang"].read_text()) == ("completed", "1/0\n2/0\n2/1\n")
    assert run.steps["die_then_hang"].version == 2  # one retry, for the step run that was killed


def test_scancel_from_outside_ends_run_and_step(bench: Bench) -> None:
    from tests.slurm.pipelines import waiting

    run_id = bench.submit(waiting, 120)
    run = bench.wait(run_id, lambda run: "wait" in run.steps)
    bench.slurm.cancel([run.run_metadata["slurm_jobs"]["wait"]])
    asked = time.monotonic()
    run = bench.wait(run_id)
    assert time.monotonic() - asked < 60
    assert (run.status.value, bench.statuses(run)) == ("failed", {"one": "completed", "wait": "cancelled"})
    assert "CANCELLED" in run.steps["wait"].exception_info.traceback


@pytest.mark.parametrize("graceful", [True, False])
def test_stopping_a_run_stops_what_runs_and_what_waits(bench: Bench, graceful: bool) -> None:
    from zenml.utils.run_utils import stop_run

    from tests.slurm.pipelines import waiting

    run_id = bench.submit(waiting, 120)
    run = bench.wait(run_id, lambda run: "wait" in run.steps)
    stop_run(run, graceful=graceful)
    run = bench.wait(run_id)
    assert (run.status.value, bench.statuses(run)) == ("stopped", {"one": "completed", "wait": "stopped"})


def test_stopping_a_run_whose_first_job_still_waits(bench: Bench, full_cluster: None) -> None:
    from zenml.utils.run_utils import stop_run

    from tests.slurm.pipelines import waiting

    run_id = bench.submit(waiting, 1)
    run = bench.run(run_id)
    assert run.status.value == "provisioning"
    stop_run(run, graceful=True)
    assert [job.state for job in bench.jobs(run)] == [JobState.CANCELLED] * 3
    bench.release()
    run = bench.wait(run_id)
    assert (run.status.value, bench.statuses(run)) == ("stopped", {})


def test_scancel_of_a_job_that_waits_ends_the_run(bench: Bench, full_cluster: None) -> None:
    from tests.slurm.pipelines import waiting

    run_id = bench.submit(waiting, 1)
    bench.slurm.cancel([bench.run(run_id).run_metadata["slurm_jobs"]["one"]])
    bench.release()
    run = bench.wait(run_id)
    assert (run.status.value, bench.statuses(run)) == ("failed", {})
    assert "step one" in run.get_body().status_reason
    assert "CANCELLED" in run.get_body().status_reason


def test_a_step_with_a_cached_result_has_no_job(bench: Bench) -> None:
    from tests.slurm.pipelines import with_cached_step

    first = bench.wait(bench.submit(with_cached_step))
    again = bench.wait(bench.submit(with_cached_step))
    assert set(first.run_metadata["slurm_jobs"]) == {"cached", "add"}
    assert set(again.run_metadata["slurm_jobs"]) == {"add"}
    assert bench.statuses(again) == {"cached": "cached", "add": "completed"}
    assert again.status.value == "completed"


def test_refresh_and_status_say_what_slurm_says(bench: Bench) -> None:
    from zenml.utils.run_utils import refresh_run_status

    from tests.slurm.pipelines import waiting

    run_id = bench.submit(waiting, 3)
    run = bench.wait(run_id, lambda run: "wait" in run.steps)
    status, steps = bench.orchestrator.fetch_status(run, include_steps=True)
    assert (status.value, steps["one"].value, steps["wait"].value, steps["add"].value) == (
        "running",
        "completed",
        "running",
        "provisioning",
    )
    bench.slurm.cancel([run.run_metadata["slurm_closing"]])  # nobody is left to write the end
    bench.wait(run_id, lambda _: not any(not job.state.finished for job in bench.jobs(run)))
    assert refresh_run_status(bench.run(run_id), include_step_updates=True).status.value == "completed"


def test_what_the_cluster_cannot_run_is_refused_before_anything_is_queued(bench: Bench) -> None:
    from tests.slurm.pipelines import diamond

    with pytest.raises(FoundryError, match="nodes"):
        bench.submit(diamond, slurm={"nodes": 9})
    assert not [path for path in (bench.folder / "runs").iterdir() if not (path / "jobs.json").exists()]
