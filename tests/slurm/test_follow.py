"""Following a run: its jobs' states by one gentle query a poll, its logs byte for byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hls_foundry.errors import ConfigError, FoundryError
from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller, open_run
from stacks.slurm.plan import Submitted
from stacks.slurm.reasons import explain
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.transport import LocalTransport
from tests.slurm.hand_made import HandMadeRun, TinyJob, plan_of, submit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def alone(tmp_path: Path) -> Follower:
    """Follows a run of one step whose cluster is never asked."""
    transport = LocalTransport({})
    run = RunDirectory(PurePosixPath(tmp_path))
    Path(run.step("a").root).mkdir(parents=True)
    return Follower(Slurm(transport), transport, run, plan_of({"a": ()}), Submitted(jobs={"a": 1}, closing=2))


def test_a_log_comes_in_whole_lines_and_only_once(alone: Follower) -> None:
    log = Path(alone.run.step("a").log)
    assert alone.new_log("a") == "", "the job has not started"
    with log.open("ab") as file:
        file.write("první řádek\nhal".encode())
        file.flush()
        assert alone.new_log("a") == "první řádek\n"
        assert alone.partial_line("a") == "hal"
        file.write("bzeile ž".encode()[:-1])  # in the middle of a character
        file.flush()
        assert alone.new_log("a") == ""
        file.write("ž\n".encode()[1:] + b"\xff\xfe end\n")
        file.flush()
        assert alone.new_log("a") == "halbzeile ž\n\ufffd\ufffd end\n"
    assert alone.new_log("a") == ""


def test_a_truncated_or_replaced_log_is_read_from_its_start(alone: Follower) -> None:
    log = Path(alone.run.step("a").log)
    log.write_text("one\n" * 100)
    assert alone.new_log("a") == "one\n" * 100
    log.write_text("anew\n")
    assert alone.new_log("a") == "anew\n"
    log.write_text("longer than what was read before, and different\n")
    assert alone.new_log("a") == "longer than what was read before, and different\n"


def test_slurm_is_asked_at_most_every_5_s_and_less_often_while_nothing_happens() -> None:
    clock = Clock()
    poller = Poller(clock=clock)
    asked: list[float] = []
    for _ in range(3600):
        if poller.due():
            asked.append(clock.now)
            poller.asked(changed=False)
        clock.now += 1
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert min(waits) == 5
    assert waits == sorted(waits)
    assert waits[-1] == 30
    poller.asked(changed=True)
    clock.now += 5
    assert poller.due(), "something has changed: more may"


def test_a_hint_brings_the_next_question_forward_but_not_below_5_s() -> None:
    clock = Clock()
    poller = Poller(clock=clock)
    clock.now += 3600
    poller.asked(changed=False)
    clock.now += 4
    poller.hint()
    assert not poller.due()
    clock.now += 1
    assert poller.due()


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("Priority", "others come first (Priority)"),
        ("(Resources)", "waits for free nodes (Resources)"),
        ("ReqNodeNotAvail, UnavailableNodes:n2", "nodes it asks for are down or reserved (ReqNodeNotAvail, UnavailableNodes:n2)"),
        ("QOSMaxMemoryPerUser", "a limit of the QOS is reached (QOSMaxMemoryPerUser)"),
        ("AssocGrpCPUMinutesLimit", "the account's CPU time is used up (AssocGrpCPUMinutesLimit)"),
        ("BeginTime", "waits for its begin time (BeginTime)"),
        ("SomethingNew", "SomethingNew"),
        ("None", ""),
        ("", ""),
    ],
)
def test_reasons_are_words_that_keep_slurms_own(reason: str, told: str) -> None:
    assert explain(reason) == told


def test_a_requeued_job_is_told_apart_from_one_that_waits_for_its_time() -> None:
    assert explain("BeginTime", restarts=1) == "requeued, waits (BeginTime)"
    assert explain("Dependency", finished=True) == "cancelled while it waited (Dependency)"
    assert explain("TimeLimit", finished=True) == "ran into its time limit (TimeLimit)"
    assert explain("NonZeroExitCode", finished=True, exit_code=85) == "asked to end, and did"


def test_a_run_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="removed, or is not mounted here"):
        open_run(LocalTransport({}), str(tmp_path / "gone"))


def test_a_submission_that_was_cut_short_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan_of({"a": ()}).model_dump_json())
    with pytest.raises(ConfigError, match=r"has no jobs\.json"):
        open_run(LocalTransport({}), str(tmp_path))


def test_a_cluster_that_is_down_is_an_error_and_the_last_view_stays(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\nMessageTimeout=1\nNodeName=n1\nPartitionName=p Nodes=n1\n"
    )
    transport = LocalTransport({"SLURM_CONF": str(conf)})
    slurm = Slurm(transport, attempts=1)
    follower = Follower(slurm, transport, RunDirectory(PurePosixPath(tmp_path)), plan_of({"a": ()}), Submitted(jobs={"a": 1}, closing=2))
    with pytest.raises(FoundryError):
        follower.rows()
    assert [row.state for row in follower.last_rows()] == [JobState.UNKNOWN]
    assert not follower.finished
    assert follower.rows() == follower.last_rows(), "not asked again at once"


@pytest.fixture(scope="module")
def failing_run(slurm_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandMadeRun]:
    """Two steps that end well side by side, one after them that fails, and one that therefore never starts."""
    steps = {
        "ingest": TinyJob("echo ingested"),
        "weights": TinyJob("printf 'a bar 10%%\\ra bar 100%%\\n'; sleep 1; printf 'no line end'"),
        "fit": TinyJob("echo 'loss is nan' >&2; exit 3", after=("ingest", "weights")),
        "promote": TinyJob("echo never", after=("fit",)),
    }
    run = submit(tmp_path_factory.mktemp("run"), slurm_cluster.environment, steps)
    yield run
    run.cancel()


def test_a_run_is_followed_to_the_end_of_its_closing_job(failing_run: HandMadeRun) -> None:
    follower, logs, ran = failing_run.follower(), dict[str, str](), set[str | None]()
    deadline = time.monotonic() + 60
    while not follower.finished and time.monotonic() < deadline:
        follower.rows()
        ran.add(follower.running_step)
        for step, text in follower.news():
            logs[step] = logs.get(step, "") + text
        time.sleep(0.1)
    assert follower.finished
    rows = {row.step: row for row in follower.rows()}
    assert list(rows) == ["ingest", "weights", "fit", "promote"]
    assert [row.state.value for row in rows.values()] == ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED"]
    assert [row.job for row in rows.values()] == list(failing_run.submitted.jobs.values())
    assert follower.closing_row().state is JobState.COMPLETED
    assert rows["weights"].nodes == 1
    assert rows["weights"].node_list
    assert rows["weights"].elapsed_s >= 1
    assert "weights" in ran
    assert logs["ingest"] == "ingested\n"
    assert logs["weights"] == "a bar 10%\ra bar 100%\nno line end"
    assert logs["fit"] == "loss is nan\n"
    assert "promote" not in logs
    follower.transport.commands.clear()  # type: ignore[attr-defined]
    assert follower.rows() == follower.last_rows()
    assert follower.transport.commands == [], "nobody asks after a run that has ended"  # type: ignore[attr-defined]


def test_one_question_covers_all_jobs_and_elapsed_time_is_counted_in_between(slurm_cluster: Any, tmp_path: Path) -> None:
    steps = {f"s{number}": TinyJob("sleep 60", options=("--begin=now+1hour",) if number else ()) for number in range(6)}
    run = submit(tmp_path, slurm_cluster.environment, steps)
    try:
        clock = Clock()
        follower = Follower(Slurm(run.transport), run.transport, run.run, run.plan, run.submitted, Poller(clock=clock))
        deadline = time.monotonic() + 30
        while follower.rows()[0].state is not JobState.RUNNING and time.monotonic() < deadline:
            clock.now += 5
            time.sleep(0.2)
        run.transport.commands.clear()
        clock.now += 5
        first = follower.rows()[0]
        assert run.transport.commands == ["squeue"]
        clock.now += 4
        assert follower.rows()[0].elapsed_s == pytest.approx(first.elapsed_s + 4)
        assert run.transport.commands == ["squeue"]
        assert follower.rows()[5].reason == "BeginTime"
        assert follower.rows()[5].elapsed_s == 0
    finally:
        run.cancel()


def test_a_job_that_slurm_has_never_heard_of_does_not_keep_the_run_open(slurm_cluster: Any, tmp_path: Path) -> None:
    transport = LocalTransport(slurm_cluster.environment)
    submitted, clock = Submitted(jobs={"a": 999_001}, closing=999_002), Clock()
    run = RunDirectory(PurePosixPath(tmp_path))
    follower = Follower(Slurm(transport), transport, run, plan_of({"a": ()}), submitted, Poller(clock=clock))
    assert follower.rows()[0].state is JobState.UNKNOWN
    assert not follower.finished, "once may be a gap between two sources"
    clock.now += 5
    follower.rows()
    assert follower.finished


def test_the_steps_that_a_dynamic_pipeline_submits_later_become_rows_with_logs(slurm_cluster: Any, tmp_path: Path) -> None:
    outer = submit(tmp_path / "run", slurm_cluster.environment, {"pipeline": TinyJob("sleep 30")})
    plan, inner = outer.plan.model_copy(update={"dynamic": True}), list[HandMadeRun]()
    try:
        clock = Clock()
        follower = Follower(Slurm(outer.transport), outer.transport, outer.run, plan, outer.submitted, Poller(clock=clock))
        assert [row.step for row in follower.rows()] == ["pipeline"]
        for attempt in ("first", "second"):
            folder = Path(outer.run.isolated(attempt).root)
            inner.append(submit(folder, slurm_cluster.environment, {"train": TinyJob(f"echo {attempt}")}))
            time.sleep(0.01)  # their order is that of their folders' times
        logs: dict[str, str] = {}
        deadline = time.monotonic() + 40
        while len(logs) < 2 and time.monotonic() < deadline:
            clock.now += 5
            rows = {row.step: row.job for row in follower.rows()}
            logs.update(follower.news())
            time.sleep(0.2)
        assert rows == {
            "pipeline": outer.submitted.jobs["pipeline"],
            "train": inner[0].submitted.jobs["train"],
            "train (2)": inner[1].submitted.jobs["train"],
        }
        assert logs == {"train": "first\n", "train (2)": "second\n"}
    finally:
        for run in (outer, *inner):
            run.cancel()
