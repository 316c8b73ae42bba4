"""The supervisor as the batch process of real jobs. All stories run side by side: a requeue alone takes Slurm 12 s."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stacks.slurm.rehearsal import Cluster as RehearsalCluster
from tests.slurm.supervised import Cluster, Story, until

WAIT = "note(f'ready{start}', os.getpid())\ntime.sleep(100)\n"
SAVE = "for number in (signal.SIGUSR1, signal.SIGTERM): signal.signal(number, save)\n"
FIRST_WAIT = f"if start == 0:\n{''.join(f'    {line}' for line in WAIT.splitlines(True))}"


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody has reaped yet does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def completes(story: Story) -> Any:
    usage = '{"host": "n2", "cpu_seconds": 7.5, "max_rss_bytes": 1000000000}'
    story.write(
        "blob = b'x' * 60_000_000\nwhile time.process_time() < 1.0: pass\n"
        f"pathlib.Path(os.environ['HLS_USAGE_FOLDER'], 'n2.json').write_text('{usage}')\n"
        "pathlib.Path(os.environ['HLS_PROGRESS_FILE']).write_text('40')\nprint('done')\n"
    ).submit("--nodes=2", "--mem=200")  # the cluster kills what takes more, at its next look
    until(lambda: (story.folder / "state.json").exists(), "the supervisor")
    time.sleep(0.5)
    early = (story.folder / "starts").exists()
    story.complete()
    return early, story.ended()


def fails(story: Story) -> Any:
    story.write("sys.exit(3)\n", max_retries=2, retry_delay_s=0.2, retry_backoff=2).submit().complete()
    return story.ended()


def fails_by_mode(story: Story) -> Any:
    """The same failure in each execution mode, beside one job that runs and one that has not started."""
    running = story.cluster.submit(story.run, "sleep 100")
    found = {}
    for mode in ("continue_on_failure", "stop_on_failure", "fail_fast"):
        waiting = story.cluster.submit(story.run, "sleep 100", "--begin=now+1hour")
        until(lambda: story.cluster.state(running) == "RUNNING", "the job beside it")
        failing = Story(story.cluster, story.run / mode).write("sys.exit(1)\n", mode=mode).submit().complete(other=running, later=waiting)
        failing.ended()
        if mode == "fail_fast":
            story.cluster.ended(running)
        found[mode] = (story.cluster.state(running), story.cluster.state(waiting))
        story.cluster("scancel", str(waiting))
    return found


def saves_at_warning(story: Story) -> Any:
    """The first attempt fails, the second one is interrupted by the warning."""
    story.write(f"if start == 0: sys.exit(1)\n{SAVE}if start == 1:\n    note('ready', 1)\n    time.sleep(100)\n", max_retries=1)
    story.submit().complete().noted("ready")
    story.signal("USR1")
    with contextlib.suppress(AssertionError):  # the job may be on its way back to the queue already
        story.signal("USR1")
    return story.ended()


def dies_of_warning(story: Story) -> Any:
    """And a job that depends on it, as the next step's does."""
    story.write(FIRST_WAIT).submit().complete().noted("ready0")
    after = story.cluster.submit(story.run, "true", f"--dependency=afterok:{story.job}", "--kill-on-invalid-dep=yes")
    story.signal("USR1")
    state = story.ended()
    return state if story.cluster.ended(after) == "COMPLETED" else f"{state}, but what depends on it was cancelled"


def preempted_with_grace(story: Story) -> Any:
    """Preemption with a grace time is a TERM while the job goes on running."""
    story.write(SAVE + FIRST_WAIT).submit().complete().noted("ready0")
    story.signal("TERM")
    return story.ended()


def requeued_from_outside(story: Story) -> Any:
    story.write(FIRST_WAIT).submit().complete().noted("ready0")
    story.cluster("scontrol", "requeue", str(story.job))
    requeued = until(lambda: state if (state := story.state)["outcome"] else None, "the end of the first start")
    return requeued, story.ended()


def cancelled(story: Story) -> Any:
    """A step that takes its time to end, and has a process that left its session and ignores TERM."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(100)"
    child = f"orphan = subprocess.Popen([sys.executable, '-c', {stubborn!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
    text = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n{child}orphan.stdout.readline(); note('orphan', orphan.pid)\n{WAIT}"
    story.write(text, max_retries=5).submit().complete()
    pids = [int(story.noted("orphan")), int(story.noted("ready0"))]
    story.cluster("scancel", str(story.job))
    return pids, story.ended()


def stopped(story: Story) -> Any:
    story.write(SAVE + WAIT).submit().complete().noted("ready0")
    (story.run / "stopping").touch()
    story.signal("USR1")
    return story.ended()


def killed(story: Story) -> Any:
    pid = int(story.write(WAIT).submit().complete().noted("ready0"))
    os.kill(pid, signal.SIGKILL)
    return story.ended()


def stuck(story: Story) -> Any:
    story.write("save(0, 0)\n", max_restarts_without_progress=1).submit().complete()
    return story.ended()


def restarts_too_often(story: Story) -> Any:
    story.write("note('progress', start); os._exit(85)\n", max_restarts=1).submit().complete()
    return story.ended()


def never_submitted(story: Story) -> Any:
    story.write("").submit("--export=ALL,HLS_SUBMISSION_WAIT_S=1")
    return story.ended()


STORIES: tuple[Callable[[Story], Any], ...] = (
    stuck,  # those that need Slurm to start the job again come first
    restarts_too_often,
    saves_at_warning,
    dies_of_warning,
    preempted_with_grace,
    requeued_from_outside,
    killed,
    stopped,
    cancelled,
    never_submitted,
    fails,
    completes,
    fails_by_mode,
)


class Told:
    """The stories on their way. `told(STORY)` waits for what it returned."""

    def __init__(self, cluster: Cluster, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.stories = {tell: Story(cluster, folder / tell.__name__) for tell in STORIES}
        for story in self.stories.values():
            story.run.mkdir()
        self.results: dict[Callable[[Story], Any], Future[Any]] = {tell: pool.submit(tell, story) for tell, story in self.stories.items()}

    def __call__(self, tell: Callable[[Story], Any]) -> tuple[Story, Any]:
        return self.stories[tell], self.results[tell].result(timeout=200)


@pytest.fixture(scope="module")
def told(slurm_cluster: RehearsalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    cluster = Cluster(slurm_cluster.environment)
    with ThreadPoolExecutor(len(STORIES)) as pool:
        yield Told(cluster, tmp_path_factory.mktemp("stories"), pool)
        cluster("scancel", "--quiet", *map(str, cluster.submitted))


def test_a_step_starts_once_its_run_is_queued_and_completes(told: Told) -> None:
    story, (early, state) = told(completes)
    assert not early, "the step started before jobs.json was there"
    assert state == "COMPLETED"
    assert story.state["outcome"] == "completed"
    assert story.runs == [(0, 1, 0)]
    assert "HLS_STEP_ATTEMPT=1" in story.noted("environment0")
    assert "REENTER" not in story.noted("environment0")
    assert "done" in story.log
    assert "step train: attempt 1, restart 0 on n[1-2]" in story.log


def test_usage_is_measured_here_and_added_from_other_nodes(told: Told) -> None:
    story, _ = told(completes)
    (run,) = story.state["runs"]
    assert (run["nodes"], run["cpus"], run["progress"]) == (2, 2, 40)
    assert 8.4 < run["cpu_seconds"] < 12
    assert run["max_rss_bytes"] == 1_000_000_000


def test_a_failing_step_is_retried_and_then_fails(told: Told) -> None:
    story, state = told(fails)
    assert state == "FAILED"
    assert story.runs == [(0, 1, 3), (0, 2, 3), (0, 3, 3)]
    assert (story.state["outcome"], story.state["reason"]) == ("failed", "exit code 3")
    assert "ExitCode=3:0" in story.cluster.show(story.job)
    assert "attempt 3 of 3 in 0.4 s" in story.log
    assert "REENTER" not in story.noted("environment2")


def test_a_failure_ends_other_jobs_as_the_execution_mode_says(told: Told) -> None:
    _, found = told(fails_by_mode)
    assert found == {
        "continue_on_failure": ("RUNNING", "PENDING"),
        "stop_on_failure": ("RUNNING", "CANCELLED"),
        "fail_fast": ("CANCELLED", "CANCELLED"),
    }


def test_a_warned_step_saves_and_goes_on_in_the_same_attempt(told: Told) -> None:
    story, state = told(saves_at_warning)
    assert state == "COMPLETED"
    assert story.runs == [(0, 1, 1), (0, 2, 85), (1, 2, 0)]
    assert story.state["restarts"] == 1
    assert "REENTER" not in story.noted("environment1")
    assert "HLS_STEP_ATTEMPT=2" in story.noted("environment2")
    assert "HLS_STEP_REENTER=1" in story.noted("environment2")


@pytest.mark.parametrize("tell", [dies_of_warning, preempted_with_grace])
def test_a_step_that_ends_at_a_signal_starts_again(told: Told, tell: Callable[[Story], Any]) -> None:
    story, state = told(tell)
    assert state == "COMPLETED"
    assert [run[:2] for run in story.runs] == [(0, 1), (1, 1)]
    assert story.state["outcome"] == "completed"


def test_a_requeue_from_outside_is_no_failure(told: Told) -> None:
    story, (first, state) = told(requeued_from_outside)
    assert (first["outcome"], first["reason"]) == ("requeued", "")
    assert state == "COMPLETED"
    assert [run[:2] for run in story.runs] == [(0, 1), (1, 1)]
    assert all(run["ended"] for run in story.state["runs"])


def test_a_cancelled_step_is_stopped_and_leaves_no_process(told: Told) -> None:
    story, (pids, state) = told(cancelled)
    assert state == "CANCELLED"
    assert story.state["outcome"] == "stopped"
    assert "cancelled" in story.state["reason"]
    assert story.runs == [(0, 1, 1)], "a cancelled step must not be retried"
    until(lambda: not any(alive(pid) for pid in pids), "the end of all its processes", 10)


def test_a_run_that_was_asked_to_stop_does_not_come_back(told: Told) -> None:
    story, state = told(stopped)
    assert state == "FAILED"
    assert (story.state["outcome"], story.state["reason"]) == ("stopped", "the run was stopped")
    assert "requeued" not in story.log


def test_a_killed_step_fails_with_the_likely_cause(told: Told) -> None:
    story, state = told(killed)
    assert state == "FAILED"
    assert story.state["reason"] == "killed by SIGKILL (out of memory?)"


def test_a_step_without_progress_is_given_up(told: Told) -> None:
    story, state = told(stuck)
    assert state == "FAILED"
    assert story.runs == [(0, 1, 85), (1, 1, 85)]
    assert story.state["reason"] == "no progress in 1 restart: stuck at step 120 (max_restarts_without_progress)"


def test_restarts_have_a_limit(told: Told) -> None:
    story, state = told(restarts_too_often)
    assert state == "FAILED"
    assert story.runs == [(0, 1, 85), (1, 1, 85)]
    assert story.state["reason"] == "restarted 1 time, which is the limit (max_restarts)"


def test_an_interrupted_submission_is_closed_by_the_job_that_finds_it(told: Told) -> None:
    story, state = told(never_submitted)
    assert state == "FAILED"
    assert story.closed
    assert not (story.folder / "starts").exists()
    assert "submission was interrupted" in story.state["reason"]
