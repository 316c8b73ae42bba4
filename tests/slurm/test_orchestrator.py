"""Pipelines on a real cluster, with ZenML's own client: what ZenML records must be what happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from zenml.enums import ExecutionMode

from hls_foundry.errors import FoundryError
from stacks.slurm.client import Slurm
from stacks.slurm.records import Job
from stacks.slurm.states import JobState


class Bench:
    """A ZenML store of its own, with a stack on the rehearsal cluster."""

    def __init__(self, folder: Path, cluster: Any) -> None:
        from hls_foundry.endpoints.settings import PublishSettings
        from stacks.definition import Component, StackDefinition
        from stacks.registry import register_stack, use_stack

        self.folder, self.cluster = folder, cluster
        self.blocking = 0
        configuration = {"folder": str(folder / "runs"), "slurm_conf": str(cluster.slurm_conf), "partition": "batch", "synchronous": False}
        components = (
            Component(type="orchestrator", flavor="slurm", configuration=configuration),
            Component(type="artifact_store", flavor="local"),
        )
        publish = PublishSettings(folder=str(folder))
        definition = StackDefinition(name="test", file=folder, publish=publish, components=components)
        use_stack(register_stack(definition))

    def submit(self, pipeline: Any, *arguments: Any, slurm: dict[str, Any] | None = None, **options: Any) -> str:
        """Submit and return the id of the run."""
        settings = {"orchestrator": {"time": "5", **(slurm or {})}, "resources": {"cpu_count": 1, "memory": "700MB"}}
        run = pipeline.with_options(settings=settings, **options)(*arguments)
        return str(run.id)

    @property
    def orchestrator(self) -> Any:
        from zenml.client import Client

        return Client().active_stack.orchestrator

    def release(self) -> None:
        """Let the jobs go on that `full_cluster` keeps waiting."""
        self.slurm.cancel([self.blocking])

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.orchestrator.transport())

    def jobs(self, run: Any) -> list[Job]:
        return list(self.slurm.jobs(run.run_metadata["slurm_jobs"].values()).values())

    def run(self, run_id: str) -> Any:
        from zenml.client import Client

        return Client().get_pipeline_run(run_id)

    def wait(self, run_id: str, until: Callable[[Any], bool] | None = None, seconds: float = 180) -> Any:
        """The run once it has ended (or `until` holds)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run = self.run(run_id)
            if until(run) if until else run.status.is_finished and self.outcome(run) is not None:
                return run
            time.sleep(0.5)
        pytest.fail(f"run {run.name} is {run.status} after {seconds} s: { {name: step.status for name, step in run.steps.items()} }")

    def outcome(self, run: Any) -> dict[str, Any] | None:
        path = Path(run.run_metadata["slurm_folder"]) / "outcome.json"
        return json.loads(path.read_text()) if path.exists() else None

    def statuses(self, run: Any) -> dict[str, str]:
        return {name: step.status.value for name, step in run.steps.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, slurm_cluster: Any) -> Iterator[Bench]:
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    folder = tmp_path_factory.mktemp("bench")
    patch = pytest.MonkeyPatch()
    patch.setenv("ZENML_CONFIG_PATH", str(folder / "zenml"))
    patch.delenv("ZENML_ACTIVE_STACK_ID", raising=False)
    patch.setenv("HLS_FOUNDRY_HOME", str(folder / "home"))
    from cli.session import start_zenml

    GlobalConfiguration._reset_instance()
    Client._reset_instance()
    start_zenml()
    yield Bench(folder, slurm_cluster)
    patch.undo()
    os.environ.pop("ZENML_ACTIVE_STACK_ID", None)
    GlobalConfiguration._reset_instance()
    Client._reset_instance()


@pytest.fixture
def full_cluster(bench: Bench, tmp_path: Path) -> Iterator[None]:
    """Jobs submitted meanwhile wait, until `bench.release()`."""
    script = tmp_path / "full.sh"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=2 --exclusive --time=10 --output=/dev/null --no-requeue\nsleep 600\n")
    bench.blocking = bench.slurm.submit(script)
    while bench.slurm.jobs([bench.blocking])[bench.blocking].state is not JobState.RUNNING:
        time.sleep(0.2)
    yield
    bench.release()


@pytest.fixture(scope="module")
def runs(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs that do not disturb each other, submitted one after the other and on the cluster together."""
    from tests.slurm import pipelines

    note = tmp_path_factory.mktemp("notes")
    fail_fast, go_on = ExecutionMode.FAIL_FAST, ExecutionMode.CONTINUE_ON_FAILURE
    return {
        "branch fails, fail fast": bench.submit(pipelines.one_branch_fails, 60, execution_mode=fail_fast),
        "branch fails, others go on": bench.submit(pipelines.one_branch_fails, 5, execution_mode=go_on),
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


def test_a_failing_branch_cancels_the_others_where_that_is_asked_for(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["branch fails, fail fast"])
    assert run.status.value == "failed"
    statuses = bench.statuses(run)
    assert statuses["fail"] == "failed"
    assert statuses.get("wait", "cancelled") in ("cancelled", "stopped")
    assert "add" not in statuses
    assert bench.outcome(run)["steps"]["add"]["state"] == "CANCELLED"
    assert "this step fails" in run.steps["fail"].exception_info.traceback


def test_a_failing_branch_lets_the_others_go_on_where_that_is_asked_for(bench: Bench, runs: dict[str, str]) -> None:
    run = bench.wait(runs["branch fails, others go on"])
    assert run.status.value == "failed"
    assert bench.statuses(run) == {"one": "completed", "two": "completed", "fail": "failed", "wait": "completed"}


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


def test_a_restart_by_slurm_goes_on_in_the_same_step_run(bench: Bench, tmp_path: Path) -> None:
    from tests.slurm.pipelines import restarted

    note = tmp_path / "note"
    run_id = bench.submit(restarted, str(note))
    run = bench.wait(run_id, lambda _: note.exists())
    bench.slurm.requeue(run.run_metadata["slurm_jobs"]["hang_at_first"])
    run = bench.wait(run_id)
    assert (run.status.value, note.read_text()) == ("completed", "0\n1\n")
    assert run.steps["hang_at_first"].version == 1  # no retry was used up
    assert bench.outcome(run)["steps"]["hang_at_first"]["restarts"] == 1


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


def test_a_step_with_a_cached_result_has_no_job(bench: Bench) -> None:
    from tests.slurm.pipelines import with_cached_step

    first = bench.wait(bench.submit(with_cached_step))
    again = bench.wait(bench.submit(with_cached_step))
    assert set(first.run_metadata["slurm_jobs"]) == {"cached", "add"}
    assert set(again.run_metadata["slurm_jobs"]) == {"add"}
    assert bench.statuses(again) == {"cached": "cached", "add": "completed"}
    assert again.status.value == "completed"


def test_a_dynamic_pipeline_runs_its_isolated_steps_as_jobs(bench: Bench) -> None:
    from tests.slurm.pipelines import grows

    run = bench.wait(bench.submit(grows))
    assert (run.status.value, set(bench.statuses(run).values())) == ("completed", {"completed"})
    isolated = list(Path(run.run_metadata["slurm_folder"]).glob("isolated/*/jobs.json"))
    assert len(isolated) == 2


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
