"""The supervisor where no Slurm answers: how fast it is, who gives way to whom, and files that are not as they should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from stacks.slurm.attempts import Run
from stacks.slurm.own_job import Answer, OwnJob
from stacks.slurm.processes import StepProcess
from stacks.slurm.supervisor import Supervisor
from tests.slurm.supervised import ROOT, Cluster, Story, until

SLURM_AWAY = {"SLURM_JOB_ID": "7", "PATH": "/nonexistent"}


def start(story: Story, **environment: str) -> subprocess.Popen[str]:
    story.complete()
    command = [sys.executable, "-m", "stacks.slurm.supervisor", str(story.run), "train"]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **SLURM_AWAY, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(Cluster({}), tmp_path / "run", 7)


def test_it_is_at_work_at_once() -> None:
    """Processor time, which a busy machine does not stretch."""
    times = []
    for _ in range(5):
        pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "stacks.slurm.supervisor"], {**os.environ, "PYTHONPATH": str(ROOT)})
        _, status, usage = os.wait4(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 2  # no arguments: it has said so, and everything is imported
        times.append(usage.ru_utime + usage.ru_stime)
    assert min(times) < 0.15, times


def test_it_imports_the_standard_library_alone() -> None:
    code = "import sys, stacks.slurm.supervisor; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(sys.stdlib_module_names) | {"stacks", "__main__"}


def test_it_gives_way_to_a_start_of_the_job_elsewhere(story: Story) -> None:
    """slurmd may die while its tasks live on: the restarted job and the old one must not both write."""
    story.write("note('pid', os.getpid())\ntime.sleep(100)\n")
    with start(story) as supervisor:
        pid = int(story.noted("pid"))
        state = {**story.state, "restarts": 1}
        (story.folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        output = supervisor.communicate(timeout=20)[0]
    assert supervisor.returncode == 1
    assert "started again elsewhere" in output
    assert story.state == state, "the later start's state.json must stay as it is"
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("number", "job_state", "left", "patience"),
    [
        (signal.SIGUSR1, "RUNNING", 120, 105),  # what is left but 15 s, to ask for the restart
        (signal.SIGUSR1, "RUNNING", 15, 10),  # of a short grace time, most of it
        (signal.SIGTERM, "COMPLETING", 3600, 25),  # Slurm kills soon
        (signal.SIGTERM, "RUNNING", 3600, 300),  # somebody asks; Slurm does not
    ],
)
def test_a_step_has_as_long_to_save_as_there_is(story: Story, number: int, job_state: str, left: float, patience: float) -> None:
    story.write("")
    end = datetime.fromtimestamp(time.time() + left).isoformat(timespec="seconds")
    said = f"JobId=7 JobState={job_state} Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 EndTime={end} Deadline=N/A"
    own = OwnJob(7, 0, lambda _: Answer(said))
    supervisor = Supervisor(story.run, "train", json.loads((story.run / "plan.json").read_text()), own, {})
    process = StepProcess(["sleep", "60"], os.environ)
    try:
        supervisor.state.runs.append(Run(7, 0, 1, "", ""))
        supervisor._heed(number, process)
        assert supervisor.watch.kill_at
        assert abs(supervisor.watch.kill_at - time.monotonic() - patience) < 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)


def test_a_step_that_is_done_is_not_done_again(story: Story) -> None:
    story.write("")
    for restart in ("0", "1"):
        with start(story, SLURM_RESTART_COUNT=restart) as supervisor:
            output = supervisor.communicate(timeout=20)[0]
        assert supervisor.returncode == 0
    assert "completed already" in output
    assert (story.folder / "starts").read_text() == "1"


@pytest.mark.parametrize("content", ['{"attempt": 1, "runs": [{"jo', "", "[]", None])
def test_a_restart_survives_a_damaged_state(story: Story, content: str | None) -> None:
    story.write("")
    if content is not None:
        (story.folder / "state.json").write_text(content, encoding="utf-8")
    with start(story, SLURM_RESTART_COUNT="2") as supervisor:
        assert supervisor.wait() == 0
    assert story.runs == [(2, 1, 0)]
    assert "HLS_STEP_REENTER=1" in story.noted("environment0")


def test_a_start_that_was_killed_ended_when_last_seen(story: Story) -> None:
    story.write("note('pid', os.getpid())\nif start == 0: time.sleep(100)\n")
    with start(story) as supervisor:
        pid = int(story.noted("pid"))
        until(lambda: story.state["runs"], "the first run")
        supervisor.kill()
    os.kill(pid, signal.SIGKILL)
    with start(story, SLURM_RESTART_COUNT="1") as supervisor:
        assert supervisor.wait() == 0
    first, second = story.state["runs"]
    assert (first["ended"], first["exit"]) == (first["last_seen"], None)
    assert (second["restart"], second["attempt"], second["exit"]) == (1, 1, 0)


def test_what_a_step_leaves_running_is_ended(story: Story) -> None:
    forgotten = (
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True); note('forgotten', p.pid)\n"
    )
    story.write(forgotten)
    with start(story) as supervisor:
        assert supervisor.wait() == 0
    assert not Path(f"/proc/{story.noted('forgotten')}").exists()


def test_a_command_that_does_not_exist_fails_in_one_line(story: Story) -> None:
    story.write("")
    plan = json.loads((story.run / "plan.json").read_text())
    plan["steps"]["train"]["command"] = ["no-such-program"]
    (story.run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with start(story) as supervisor:
        output = supervisor.communicate(timeout=20)[0]
    assert supervisor.returncode == 1
    assert "no-such-program cannot be started: No such file or directory" in output
    assert "Traceback" not in output
    assert story.state["reason"] == "exit code 127 (command not found)"


def test_a_plan_without_the_step_is_refused_in_one_line(story: Story) -> None:
    story.write("")
    command = [sys.executable, "-m", "stacks.slurm.supervisor", str(story.run), "other"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SLURM_AWAY}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no step 'other'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
