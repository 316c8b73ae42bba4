"""What a run cost, from whatever is left to tell it: Slurm's records, the jobs' own notes, both, or neither."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stacks.slurm.cost import costs, totals
from stacks.slurm.plan import ClosingStep, Plan, PlannedStep, StepOutcome, Submitted
from stacks.slurm.records import Job
from stacks.slurm.states import JobState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PLAN = Plan(
    run_id="r",
    run_name="r",
    pipeline_run_id="p",
    snapshot_id="s",
    execution_mode="fail_fast",
    steps={
        "validate": PlannedStep(folder="steps/validate", command=("true",)),
        "train": PlannedStep(folder="steps/train", command=("true",), after=("validate",), nodes=2),
    },
    closing=ClosingStep(folder="closing", command=("true",)),
)
SUBMITTED = Submitted(jobs={"validate": 11, "train": 12}, closing=13, submitted_at=NOON)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def run(start: float, end: float | None, *, restart: int = 0, attempt: int = 1, seen: float = 0, **more: Any) -> dict[str, Any]:
    times = {"started": at(start).isoformat(), "last_seen": at(seen or end or start).isoformat(), "ended": end and at(end).isoformat()}
    used = {"nodes": 2, "cpus": 8, "cpu_seconds": 0.0, "max_rss_bytes": 0, "progress": None, "exit": 0, "node_list": "n[1-2]", "job": 12}
    return {**times, **used, "restart": restart, "attempt": attempt, **more}


def noted(*runs: dict[str, Any], outcome: str | None = "completed", restarts: int = 0) -> dict[str, Any]:
    return {"attempt": 1, "restarts": restarts, "runs": list(runs), "outcome": outcome, "reason": ""}


FIRST = noted(run(10, 60, nodes=1, cpus=2, cpu_seconds=80, max_rss_bytes=500))
"""Of `validate`: waited 10 s, ran for 50 s."""


def test_one_start_with_slurms_record() -> None:
    job = Job(11, state=JobState.COMPLETED, nodes=1, cpus=2, submitted=at(-1), eligible=at(0), started=at(9), ended=at(61), elapsed_s=52)
    cost = costs(PLAN, SUBMITTED, {11: job}, {"validate": FIRST})["validate"]
    assert (cost.state, cost.nodes, cost.restarts) == (JobState.COMPLETED, 1, 0)
    assert (cost.elapsed_s, cost.wait_s) == (52, 9)  # Slurm counts what comes before and after the step, too
    assert cost.node_hours == pytest.approx(52 / 3600)
    assert cost.cpu_efficiency == pytest.approx(80 / (50 * 2))
    assert cost.max_rss_bytes == 500


def test_without_slurms_record_the_jobs_own_notes_do() -> None:
    found = costs(PLAN, SUBMITTED, {11: None, 12: Job(12)}, {"validate": FIRST, "train": noted(run(70, 170), outcome="failed")})
    assert found["validate"].state is JobState.COMPLETED
    assert (found["validate"].elapsed_s, found["validate"].wait_s) == (50, 10)
    assert found["train"].state is JobState.FAILED
    assert found["train"].wait_s == 10, "a step waits from the end of the one before it, not from submission"
    assert found["train"].node_hours == pytest.approx(2 * 100 / 3600)
    assert totals(found) == pytest.approx((50 + 200) / 3600)


def test_restarts_and_retries_add_up() -> None:
    """Two attempts in the first start with 5 s between them, a requeue of 30 s, then a start that was killed without an end."""
    state = noted(
        run(70, 100, cpu_seconds=120, max_rss_bytes=700, exit=1),
        run(105, 120, attempt=2, cpu_seconds=60, max_rss_bytes=900, exit=85),
        run(150, None, restart=1, attempt=2, seen=200, cpu_seconds=340, max_rss_bytes=800, exit=None),
        outcome=None,
        restarts=1,
    )
    slurm = Job(12, state=JobState.RUNNING, nodes=2, cpus=8, submitted=at(121), eligible=at(132), started=at(149), elapsed_s=53, restarts=1)
    for job in (slurm, None):
        cost = costs(PLAN, SUBMITTED, {12: job}, {"validate": FIRST, "train": state})["train"]
        assert cost.restarts == 1
        assert cost.elapsed_s == 50 + 50
        assert cost.wait_s == 10 + 30
        assert cost.node_hours == pytest.approx(2 * 100 / 3600)
        assert cost.cpu_efficiency == pytest.approx(520 / (100 * 8))
        assert cost.max_rss_bytes == 900


def test_accounting_that_sums_all_starts_is_believed() -> None:
    state = noted(run(70, 100), run(150, 200, restart=1), restarts=1)
    job = Job(12, state=JobState.COMPLETED, nodes=2, cpus=8, started=at(149), elapsed_s=84, restarts=1, cpu_seconds=336, max_rss_bytes=5)
    cost = costs(PLAN, SUBMITTED, {12: job}, {"validate": FIRST, "train": state})["train"]
    assert cost.node_hours == pytest.approx(2 * 84 / 3600)
    assert cost.cpu_efficiency == pytest.approx(336 / (84 * 8))
    assert cost.max_rss_bytes == 5


def test_a_job_without_notes_is_told_by_slurm_alone() -> None:
    job = Job(11, state=JobState.NODE_FAIL, nodes=1, cpus=2, submitted=at(0), eligible=at(4), started=at(10), ended=at(40), elapsed_s=30)
    cost = costs(PLAN, SUBMITTED, {11: job}, {})["validate"]
    assert (cost.nodes, cost.elapsed_s, cost.wait_s) == (1, 30, 6)
    assert cost.node_hours == pytest.approx(30 / 3600)
    assert cost.cpu_efficiency is None
    assert cost.max_rss_bytes is None


def test_a_job_that_never_started_cost_nothing() -> None:
    job = Job(12, state=JobState.CANCELLED, reason="DependencyNeverSatisfied", nodes=2, submitted=at(0), ended=at(60))
    for known in (job, None):
        cost = costs(PLAN, SUBMITTED, {12: known}, {"train": {}})["train"]
        assert (cost.elapsed_s, cost.wait_s, cost.node_hours, cost.cpu_efficiency) == (0, 0, 0, None)
    assert cost.state is JobState.UNKNOWN


def test_efficiency_stays_within_its_bounds() -> None:
    """Clocks of nodes differ, and CPU time is counted in ticks."""
    state = noted(run(0, 1, cpu_seconds=8.2), run(3, 2, restart=1))
    assert costs(PLAN, SUBMITTED, {}, {"train": state})["train"].cpu_efficiency == 1.0
    assert costs(PLAN, SUBMITTED, {}, {"train": noted(run(3, 2))})["train"].cpu_efficiency is None


def test_a_step_that_a_dynamic_pipeline_submitted_is_counted() -> None:
    submitted = Submitted(jobs={"extra": 21}, closing=13, submitted_at=NOON)
    assert costs(PLAN, submitted, {}, {"extra": FIRST})["extra"].wait_s == 10


def test_it_is_what_the_outcome_holds() -> None:
    cost = costs(PLAN, SUBMITTED, {}, {"validate": FIRST})["validate"]
    outcome = StepOutcome(zenml="completed", **cost.as_json())
    assert (outcome.state, outcome.job_id, outcome.cpu_efficiency) == ("COMPLETED", 11, 0.8)
