"""What a run on a cluster survives: preemption, its time limit, the death of a node, of the client, and a stop in the middle.

Three trainings share a cluster and a ZenML store, and go through their troubles side by side.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import ROOT
from tests.e2e.login_node import STEPS, LoginNode, SubmittedRun, Training, ended, on_a_cluster, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

INTERVAL = 5
STOPPED, DETACHED, ABANDONED = 60, 61, 62
"""Optimiser steps of the three trainings, which tell them apart; as far as they go, they are one and the same."""
TRAINING = (
    "--set", f"training.checkpoint_every={INTERVAL}", "--set", "training.validate_every=30", "--set", "training.precision=fp32",
    "--set", "training.warmup_steps=5", "--set", "training.decay_power=0",
)  # fmt: skip
WITHOUT_INTERRUPTION = """
import sys
from pathlib import Path
from hls_foundry.training.loop import train
from hls_foundry.training.request import TrainingRequest
request = TrainingRequest.load(Path(sys.argv[1]))
train(request.model_copy(update={"folder": Path(sys.argv[2])}), progress=False)
"""
RECORDS = """
import json, sys
from zenml.client import Client
told = {}
for name in sys.argv[1:]:
    run = Client().get_pipeline_run(name)
    told[name] = {"status": run.status.value, "steps": {step: found.status.value for step, found in run.steps.items()}}
    told[name]["attempts"] = run.steps["fine_tune"].version
print(json.dumps(told))
"""


@dataclass
class Story:
    """What one training went through. `seconds`: from each event until it trained again; `lost`: the steps that it had to repeat."""

    run: SubmittedRun
    training: Training
    seconds: dict[str, float] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


@dataclass
class Stories:
    """All of them, ended. `first`: the run that was stopped, and what its client and `run.py stop` said; `again`: the one that went on."""

    login: LoginNode
    first: SubmittedRun
    told: list[subprocess.CompletedProcess[str]]
    again: SubmittedRun
    summary: dict[str, Any]
    detached: Story
    abandoned: Story
    orphans: list[psutil.Process]
    uninterrupted: Path

    @property
    def runs(self) -> list[SubmittedRun]:
        return [self.first, self.again, self.detached.run, self.abandoned.run]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    folder = tmp_path_factory.mktemp("recovery")
    # A CPU a node: every job has its nodes to itself. Two for each training, and spare ones.
    with on_a_cluster(LoginNode(folder), "--nodes", "7", "--cpus", "1", "--memory", "3300") as login:
        yield all_of_them(login, folder)


def all_of_them(login: LoginNode, folder: Path) -> Stories:
    client = login.start(*arguments(login, STOPPED))
    first = submitted(login, set())
    until(lambda: "completed" in first.log("split").rpartition("step split:")[2], "the first steps, from now on cached")
    with ThreadPoolExecutor(4) as side_by_side:
        stopped = side_by_side.submit(stop_in_the_middle, login, client, first)
        killed = login.start(*arguments(login, ABANDONED))
        abandoned = submitted(login, {first.folder})
        killed.kill()
        killed.communicate()
        node_dies = side_by_side.submit(lose_a_node, login, abandoned)
        answer = login.run(*arguments(login, DETACHED), "--detach")
        detached = SubmittedRun(Path(re.findall(r"folder (\S+)", answer.stdout)[0]))
        assert not detached.outcome(), "--detach does not wait"
        evicted = side_by_side.submit(preempt_and_time_out, login, detached)
        training = until(lambda: Training.of(login.home, ABANDONED), "the training's request")
        whole = side_by_side.submit(train_without_interruption, login, training, folder / "uninterrupted")
        told = stopped.result()
        login.run(*arguments(login, STOPPED), "--json", str(folder / "again.json"))
        summary = json.loads((folder / "again.json").read_text())
        again = SubmittedRun(Path(summary["slurm"]["folder"]))
        story, orphans = node_dies.result()
        stories = Stories(login, first, told, again, summary, evicted.result(), story, orphans, whole.result())
    for run in stories.runs:
        until(run.outcome, f"the end of {run.name}")
    return stories


def arguments(login: LoginNode, steps: int) -> list[str]:
    return login.hpc(*TRAINING, "--set", f"training.max_steps={steps}")


def submitted(login: LoginNode, others: set[Path]) -> SubmittedRun:
    """The run that comes to `others`, as soon as its submission is complete."""
    return SubmittedRun(until(lambda: login.run_folders() - others, "a submission").pop())


def stop_in_the_middle(login: LoginNode, client: subprocess.Popen[str], run: SubmittedRun) -> list[subprocess.CompletedProcess[str]]:
    """Stop the run in its training; returns what `run.py stop` said, and what the client that had been watching."""
    training = until(lambda: Training.of(login.home, STOPPED), "the training")
    with training.held_at(12):
        asked = login.start("stop", run.name)
        until(lambda: "SIGTERM" in run.log(), "the request to stop")
    return [ended(asked), ended(client, expect=1)]


def lose_a_node(login: LoginNode, run: SubmittedRun) -> tuple[Story, list[psutil.Process]]:
    """Kill the Slurm daemon of the training's first node, whose processes live on and are let loose once the job runs elsewhere."""
    story = Story(run, until(lambda: Training.of(login.home, ABANDONED), "the training"))
    with story.training.held_at(12) as held:
        before, since = story.training.step, time.monotonic()
        login.cluster.kill_slurmd(nodes_of(login, run)[0])
        until(lambda: run.state()["restarts"] == 1, "a restart on other nodes")
    trains_again(story, "node failure", before, since)
    return story, held


def preempt_and_time_out(login: LoginNode, run: SubmittedRun) -> Story:
    """Have a job of the partition `urgent` take the training's nodes; then let its time run out."""
    story = Story(run, until(lambda: Training.of(login.home, DETACHED), "the training"))
    with story.training.held_at(12):
        before, since = story.training.step, time.monotonic()
        places = f"--nodelist={','.join(nodes_of(login, run))}"
        login.slurm("sbatch", "--partition=urgent", "--nodes=2", places, "--output=/dev/null", "--wrap=sleep 1")
        until(lambda: run.log().count("SIGUSR1 from Slurm") == 1, "the warning before preemption")
    trains_again(story, "preemption", before, since)
    with story.training.held_at(before + 12):
        before, since = story.training.step, time.monotonic()
        shorten(login, run.job("fine_tune"))
        until(lambda: run.log().count("SIGUSR1 from Slurm") == 2, "the warning before the time limit")
        warned = time.monotonic()
    until(lambda: run.state()["restarts"] == 2, "a restart after the time limit")
    login.slurm("scontrol", "update", f"JobId={run.job('fine_tune')}", "TimeLimit=60")
    trains_again(story, "time limit", before, warned)
    return story


def shorten(login: LoginNode, job: int) -> None:
    """Set the job's time limit to the first whole minute that leaves it more than half a minute: Slurm looks that often."""
    elapsed = login.slurm("squeue", "--noheader", f"--jobs={job}", "--format=%M").strip()
    minutes, seconds = (int(part) for part in elapsed.split(":")[-2:])
    login.slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + (1 if seconds < 25 else 2)}")


def nodes_of(login: LoginNode, run: SubmittedRun) -> list[str]:
    return login.slurm("scontrol", "show", "hostnames", run.state()["runs"][-1]["node_list"]).split()


def trains_again(story: Story, event: str, before: int, since: float) -> None:
    """Note what `event` cost, which came at `since`, when `before` steps were done."""
    number = len(story.seconds) + 1
    resumed = until(lambda: re.findall(r"resumed from step (\d+) of", story.run.log())[number - 1 :], f"training after {event}")
    story.seconds[event] = round(time.monotonic() - since, 1)
    story.lost[event] = before - int(resumed[0])


def train_without_interruption(login: LoginNode, training: Training, folder: Path) -> Path:
    """The same training in one process."""
    command = [sys.executable, "-c", WITHOUT_INTERRUPTION, str(training.folder / "request.json"), str(folder)]
    folder.mkdir()
    subprocess.run(command, cwd=ROOT, env=login.environment, check=True, capture_output=True, timeout=400)
    return folder


def trained(folder: Path) -> np.ndarray[Any, Any]:
    """Step, loss and norm of the gradients of every step."""
    return np.array([[record[key] for key in ("step", "loss", "grad_norm")] for record in Training(folder).records])


def test_every_run_ends_in_zenml_as_it_should_without_using_up_a_retry(stories: Stories) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", RECORDS, *(run.name for run in stories.runs)],
        cwd=ROOT, env=stories.login.environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    records = json.loads(answer.stdout.splitlines()[-1])
    done = dict.fromkeys(STEPS, "completed")
    cached = {**done, **dict.fromkeys(STEPS[:3], "cached")}
    first = {"status": "stopped", "steps": {**dict.fromkeys(STEPS[:3], "completed"), "fine_tune": "stopped"}, "attempts": 1}
    assert records[stories.first.name] == first
    for run in stories.runs[1:]:
        assert records[run.name] == {"status": "completed", "steps": cached, "attempts": 1}, run.name


def test_a_stopped_training_saved_and_the_same_command_goes_on_from_there(stories: Stories) -> None:
    asked, client = stories.told
    assert "1 running one asked to save its state and end" in asked.stdout
    assert "stopped" in client.stdout
    assert "Traceback" not in client.stdout + client.stderr
    assert stories.first.state()["outcome"] == "stopped"
    saved = int(stories.first.state()["runs"][-1]["progress"])
    assert saved >= 12
    assert f"resumed from step {saved} of {STOPPED}" in stories.again.log()
    assert stories.summary["status"] == "completed"
    assert stories.summary["model"]["stage"] == "production"


def test_runs_without_a_client_complete_side_by_side(stories: Stories) -> None:
    runs = [stories.detached.run, stories.abandoned.run]
    assert [run.outcome()["status"] for run in runs] == ["completed", "completed"]
    began, finished = zip(*((run.state()["runs"][0]["started"], run.state()["runs"][-1]["ended"]) for run in runs), strict=True)
    assert max(began) < min(finished)
    listed = stories.login.run("status").stdout
    for run in runs:
        assert re.search(rf"^{run.name}  completed ", listed, re.MULTILINE)


def test_status_and_logs_tell_what_happened(stories: Stories) -> None:
    run = stories.detached.run
    status = stories.login.run("status", run.name).stdout
    assert re.search(rf"^fine_tune +{run.job('fine_tune')} +COMPLETED +completed +restart 2 ", status, re.MULTILINE), status
    log = stories.login.run("logs", run.name, "--step", "fine_tune").stdout
    for words in ("SIGUSR1 from Slurm", "restart 2 on", "resumed from step", f"step {DETACHED} of {DETACHED}"):
        assert words in log, words


@pytest.mark.parametrize(("name", "restarts"), [("detached", 2), ("abandoned", 1)])
def test_a_training_goes_on_where_it_was_inside_the_same_run(stories: Stories, name: str, restarts: int) -> None:
    story: Story = getattr(stories, name)
    print({event: f"{seconds} s, {story.lost[event]} steps" for event, seconds in story.seconds.items()})
    state = story.run.state()
    assert (state["attempt"], state["restarts"], state["outcome"]) == (1, restarts, "completed")
    for event, lost in story.lost.items():
        # The grace time of a preemption is short; where it does not do for saving, the last checkpoint stands.
        assert lost <= (0 if event == "time limit" else INTERVAL), f"{lost} steps were lost by {event}"
    slurm = story.run.outcome()["steps"]["fine_tune"]
    assert (slurm["restarts"], slurm["state"]) == (restarts, "COMPLETED")


def test_a_dead_node_is_left_for_others_and_what_lived_on_there_gives_way(stories: Stories) -> None:
    before, after = stories.abandoned.run.state()["runs"]
    login = stories.login
    dead = login.slurm("scontrol", "show", "hostnames", before["node_list"]).split()[0]
    assert dead not in login.slurm("scontrol", "show", "hostnames", after["node_list"]).split()
    assert login.cluster.node_states()[dead].startswith("down")
    until(lambda: not alive(stories.orphans), f"the end of {alive(stories.orphans)}", 60)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("steps", [STOPPED, DETACHED, ABANDONED])
def test_losses_are_those_of_a_training_without_interruption(stories: Stories, steps: int) -> None:
    training = Training.of(stories.login.home, steps)
    assert training
    found, whole = trained(training.folder), trained(stories.uninterrupted)
    assert found[:, 0].tolist() == list(range(1, steps + 1)), "no step is missing, none is there twice"
    np.testing.assert_allclose(found, whole[:steps], rtol=1e-2)
    np.testing.assert_allclose(found[:20], whole[:20], rtol=1e-3)
