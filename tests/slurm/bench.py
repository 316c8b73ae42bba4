"""A ZenML store of the tests' own, with a stack on a cluster: submits pipelines there and waits for what becomes of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stacks.slurm.client import Slurm
from stacks.slurm.records import Job
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.submission import isolated_runs, read_submitted


class Bench:
    """A stack on `cluster` that is active in this process."""

    def __init__(self, folder: Path, cluster: Any) -> None:
        self.folder, self.cluster = folder, cluster
        self.blocking = 0
        self.use("test")

    def use(self, name: str, **configuration: Any) -> None:
        """Register a stack and use it from now on; `configuration`: of its orchestrator, over these defaults.

        ZenML remembers stacks within a process: each configuration needs a name of its own.
        """
        from hls_foundry.endpoints.settings import PublishSettings
        from stacks.definition import Component, StackDefinition
        from stacks.registry import register_stack, use_stack

        own = {"folder": str(self.folder / "runs"), "slurm_conf": str(self.cluster.slurm_conf), "partition": "batch", "synchronous": False}
        components = (
            Component(type="orchestrator", flavor="slurm", configuration=own | configuration),
            Component(type="artifact_store", flavor="local"),
        )
        publish = PublishSettings(folder=str(self.folder))
        definition = StackDefinition(name=name, file=self.folder, publish=publish, components=components)
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

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.orchestrator.transport())

    @contextmanager
    def full(self) -> Iterator[None]:
        """Jobs submitted meanwhile wait, until `release()` or the end of the body."""
        script = self.folder / "full.sh"
        script.write_text("#!/bin/bash\n#SBATCH --nodes=2 --exclusive --time=10 --output=/dev/null --no-requeue\nsleep 600\n")
        self.blocking = self.slurm.submit(script)
        while self.slurm.jobs([self.blocking])[self.blocking].state is not JobState.RUNNING:
            time.sleep(0.2)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let the jobs go on that `full` keeps waiting."""
        self.slurm.cancel([self.blocking])

    def jobs(self, run: Any) -> list[Job]:
        return list(self.slurm.jobs(run.run_metadata["slurm_jobs"].values()).values())

    def job(self, run: Any, step: str) -> Job:
        number = run.run_metadata["slurm_jobs"][step]
        return self.slurm.jobs([number])[number]

    def run(self, run_id: str) -> Any:
        from zenml.client import Client

        return Client().get_pipeline_run(run_id)

    def wait(self, run_id: str, until: Callable[[Any], bool] | None = None, seconds: float = 240) -> Any:
        """The run once it has ended and left no job behind (or `until` holds)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run = self.run(run_id)
            if until(run) if until else run.status.is_finished and self.outcome(run) is not None:
                if until is None:
                    self.nothing_left(run)
                return run
            time.sleep(0.5)
        statuses = self.statuses(run)
        pytest.fail(f"run {run.name} is {run.status} after {seconds} s: {statuses}; {self.jobs(run)}")

    def nothing_left(self, run: Any, seconds: float = 60) -> None:
        """Fails where a job of the run is still in the queue, waiting or running, some seconds after the run's end."""
        directory = self.directory(run)
        transport = self.orchestrator.transport()
        submitted = [read_submitted(transport, one) for one in (directory, *isolated_runs(transport, directory))]
        ids = [job for one in submitted if one for job in one.ids()]
        deadline = time.monotonic() + seconds
        while left := [job for job in self.slurm.jobs(ids).values() if not job.state.finished]:
            assert time.monotonic() < deadline, f"still in the queue: {left}"
            time.sleep(0.5)

    def directory(self, run: Any) -> RunDirectory:
        return RunDirectory(Path(run.run_metadata["slurm_folder"]))

    def folder_of(self, run: Any) -> Path:
        return Path(run.run_metadata["slurm_folder"])

    def outcome(self, run: Any) -> dict[str, Any] | None:
        path = self.folder_of(run) / "outcome.json"
        return json.loads(path.read_text()) if path.exists() else None

    def statuses(self, run: Any) -> dict[str, str]:
        return {name: step.status.value for name, step in run.steps.items()}

    def reason(self, run: Any, step: str) -> str:
        """What the step run's record gives as its end."""
        return str(run.steps[step].exception_info.traceback)


@contextmanager
def own_zenml(folder: Path) -> Iterator[None]:
    """A ZenML store and configuration in `folder`, for this process and what it starts; afterwards as before."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    patch = pytest.MonkeyPatch()
    patch.setenv("ZENML_CONFIG_PATH", str(folder / "zenml"))
    patch.delenv("ZENML_ACTIVE_STACK_ID", raising=False)
    patch.setenv("HLS_FOUNDRY_HOME", str(folder / "home"))
    from cli.session import start_zenml

    GlobalConfiguration._reset_instance()
    Client._reset_instance()
    start_zenml()
    try:
        yield
    finally:
        patch.undo()
        os.environ.pop("ZENML_ACTIVE_STACK_ID", None)
        GlobalConfiguration._reset_instance()
        Client._reset_instance()
