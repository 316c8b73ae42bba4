"""What follows from state.json after a restart, and what the end of a step's process means."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from stacks.slurm.attempts import COMPLETED, FAILED, REQUEUED, STOPPED, Run, StepState, now
from stacks.slurm.node_usage import allocated_cpus, read_usage
from stacks.slurm.own_job import ENDED, RESTARTING, RUNNING, UNKNOWN, Answer, OwnJob, Standing, parse_standing
from stacks.slurm.verdicts import REQUEUE, RETRY, Watch, describe, judge

SHOWN = (  # of scontrol 22.05, shortened in the middle
    "JobId=4 JobName=r.train UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 Account=(null) QOS=(null) "
    "JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:03 "
    "TimeLimit=00:01:00 TimeMin=N/A SubmitTime=2026-11-23T08:18:20 StartTime=2026-11-23T08:18:31 EndTime={end} Deadline=N/A "
)


def ran(*progress: float | None, attempt: int = 1) -> StepState:
    """A state after as many starts, each of which reached the step given."""
    runs = [Run(7, number, attempt, now(), now(), progress=reached) for number, reached in enumerate(progress)]
    return StepState(attempt=attempt, restarts=len(runs), runs=runs)


def test_state_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    state = ran(None, 120)
    state.outcome, state.reason = FAILED, "exit code 3"
    state.save(tmp_path / "state.json")
    assert StepState.load(tmp_path / "state.json") == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    ran(1).save(path)
    path.write_text(path.read_text().replace('"job": 7', '"job": 7, "new": 1'))
    assert StepState.load(path).runs[0].job == 7


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()  # cannot be replaced by a file
    with pytest.raises(IsADirectoryError):
        ran(1).save(tmp_path / "state.json")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("progress", "limit", "refused"),
    [
        ((120, 120, 120), 3, False),
        ((120, 120, 120, 120), 3, True),
        ((None, None, None, None), 3, True),
        ((None, None, None, 10), 3, False),
        ((10, 10, 10, 20), 3, False),
        ((10, 20, 20, 20), 3, False),
        ((10, 20, 20, 20), 2, True),
        ((10,), 1, False),
        ((), 1, False),
    ],
)
def test_restarts_without_progress_are_those_since_it_last_grew(progress: tuple[float | None, ...], limit: int, refused: bool) -> None:
    assert (ran(*progress).refusal(len(progress), 10, limit) is not None) is refused


def test_refusals_say_what_and_where() -> None:
    assert ran(*range(11)).refusal(11, 10, 3) == "restarted 10 times, which is the limit (max_restarts)"
    assert ran(*range(10)).refusal(10, 10, 3) is None
    stuck = ran(120, 120, 120, 120).refusal(4, 10, 3)
    assert stuck == "no progress in 3 restarts: stuck at step 120 (max_restarts_without_progress)"
    assert "starts over each time" in str(ran(None, None).refusal(2, 10, 1))


def test_a_new_attempt_begins_to_count_anew() -> None:
    state = ran(5, 5, 5, 5)
    state.attempt = 2
    assert state.refusal(4, 10, 3) is None
    assert not state.reenters


@pytest.mark.parametrize(
    ("code", "watch", "standing", "stopping", "expected"),
    [
        (0, Watch(warned=True, terminated=True), Standing(ENDED), True, COMPLETED),
        (85, Watch(), Standing(RUNNING), False, REQUEUE),
        (85, Watch(), Standing(UNKNOWN), False, REQUEUE),
        (85, Watch(warned=True), Standing(RUNNING), True, STOPPED),
        (85, Watch(terminated=True), Standing(ENDED), False, STOPPED),
        (85, Watch(terminated=True), Standing(ENDED, "TimeLimit"), False, FAILED),
        (85, Watch(terminated=True), Standing(RESTARTING), False, REQUEUED),
        (1, Watch(), Standing(RESTARTING), False, REQUEUED),
        (1, Watch(), Standing(RUNNING), False, RETRY),
        (1, Watch(warned=True), Standing(RUNNING), False, RETRY),
        (-signal.SIGUSR1, Watch(warned=True), Standing(RUNNING), False, REQUEUE),
        (128 + signal.SIGUSR1, Watch(warned=True), Standing(RUNNING), False, REQUEUE),
        (-signal.SIGUSR1, Watch(), Standing(RUNNING), False, RETRY),
        (-signal.SIGTERM, Watch(terminated=True), Standing(RUNNING), False, REQUEUE),
        (-signal.SIGKILL, Watch(), Standing(RUNNING), False, RETRY),
        (-signal.SIGKILL, Watch(warned=True, overdue=True), Standing(RUNNING), False, REQUEUE),
    ],
)
def test_verdicts(code: int, watch: Watch, standing: Standing, stopping: bool, expected: str) -> None:
    assert judge(code, watch, standing, stopping=stopping).what == expected


def test_ends_in_words() -> None:
    assert describe(-signal.SIGKILL) == "killed by SIGKILL (out of memory?)"
    assert describe(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert describe(-40) == "killed by signal 40"


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "expected"),
    [
        ("RUNNING", "None", 2, Standing(RUNNING)),
        ("COMPLETING", "None", 2, Standing(ENDED)),
        ("COMPLETING", "None", 3, Standing(RESTARTING)),
        ("PENDING", "BeginTime", 3, Standing(RESTARTING)),
        ("COMPLETING", "TimeLimit", 2, Standing(ENDED, "TimeLimit")),
        ("FAILED", "launch failed requeued held", 2, Standing(ENDED, "launch failed requeued held")),
    ],
)
def test_standing_tells_a_requeue_from_an_end(state: str, reason: str, restarts: int, expected: Standing) -> None:
    assert parse_standing(SHOWN.format(state=state, reason=reason, restarts=restarts, end="Unknown"), 2) == expected


def test_standing_gives_the_end_of_the_jobs_time() -> None:
    end = parse_standing(SHOWN.format(state="RUNNING", reason="None", restarts=0, end="2026-11-23T08:19:31"), 0).end
    start = parse_standing(SHOWN.format(state="RUNNING", reason="None", restarts=0, end="2026-11-23T08:18:31"), 0).end
    assert end is not None
    assert start is not None
    assert end - start == 60


def test_standing_without_an_answer_is_unknown() -> None:
    assert parse_standing("", 0) == Standing(UNKNOWN)
    assert OwnJob(1, 0, lambda command: Answer(error="Unable to contact slurm controller")).standing() == Standing(UNKNOWN)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("Socket timed out on send/recv operation for job 4", True),
        ("Requested operation is presently disabled for job 4", False),
        ("Access/permission denied for job 4", False),
        ("", False),
    ],
)
def test_only_a_controller_that_does_not_answer_is_asked_again(error: str, transient: bool) -> None:
    assert Answer(error=error).transient is transient


def test_cancelling_nothing_asks_nobody() -> None:
    asked: list[list[str]] = []
    own = OwnJob(1, 0, lambda command: asked.append(list(command)) or Answer())
    own.cancel([], pending_only=False)
    own.cancel([2, 3], pending_only=True)
    assert asked == [["scancel", "--quiet", "--state=PENDING", "2", "3"]]


@pytest.mark.parametrize(("text", "cpus"), [("72(x2),36", 180), ("4", 4), ("2(x128)", 256), ("", 1)])
def test_allocated_cpus(text: str, cpus: int) -> None:
    assert allocated_cpus({"SLURM_JOB_CPUS_PER_NODE": text}) == cpus


def test_usage_adds_cpu_of_all_nodes_and_takes_the_memory_of_the_fullest(tmp_path: Path) -> None:
    for host, cpu, rss in (("n1.cluster", 10, 300), ("n2", 20, 350), ("n3", 30, 100)):
        (tmp_path / f"{host}.json").write_text(f'{{"host": "{host}", "cpu_seconds": {cpu}, "max_rss_bytes": {rss}}}')
    (tmp_path / "n4.json").write_text('{"host": "n4", "cpu_sec')
    assert read_usage(tmp_path, 5.0, 100, "n1") == (65.0, 400)  # this node: its agent beside what the supervisor measured
    assert read_usage(tmp_path / "none", 5.0, 100, "n1") == (5.0, 100)
