"""Puts a run's folder on the shared file system and its jobs into Slurm's queue: all of it, or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import PurePosixPath

from stacks.slurm.client import Slurm
from stacks.slurm.container import Container, host_command_script, render_container_script
from stacks.slurm.container_host import COMMANDS
from stacks.slurm.freeze import Frozen
from stacks.slurm.plan import Plan, Submitted
from stacks.slurm.run_directory import RunDirectory, StepFolder
from stacks.slurm.script import JobScript, render_environment, render_job_script
from stacks.slurm.settings import Resources, SlurmSettings
from stacks.slurm.transport import Transport

CLOSING, FAILURE = "closing", "failure"


@dataclass(frozen=True)
class StepJob:
    """What a step's job asks of the cluster, its own part of the environment, and the container that its step runs in."""

    settings: SlurmSettings
    resources: Resources
    environment: Mapping[str, str] = field(default_factory=dict)
    container: Container | None = None


class Submission:
    """One run on its way to the cluster. `python` is the interpreter there."""

    def __init__(self, slurm: Slurm, transport: Transport, run: RunDirectory, plan: Plan, python: str) -> None:
        self.slurm, self.transport, self.run, self.plan, self.python = slurm, transport, run, plan, python

    def submit(self, frozen: Frozen, environment: Mapping[str, str], steps: Mapping[str, StepJob], closing: StepJob) -> Submitted:
        """Write the folder, queue the jobs, and note their ids in jobs.json, for which every job waits before it does anything.

        Raises SlurmError and what the transport raises; then no job is left queued and the folder is gone.
        """
        queued: list[int] = []
        try:
            self.transport.unpack(frozen.archive, str(self.run.code))
            self._write(self.run.environment, render_environment(environment))
            self._write(self.run.plan, self.plan.model_dump_json(indent=1))
            self._write_containers([*steps.values(), closing])
            jobs: dict[str, int] = {}
            for name in self._order():
                after = [jobs[other] for other in self.plan.steps[name].after]
                jobs[name] = self._step(name, steps[name], after, self.run.code)
                queued.append(jobs[name])
            failure = None
            if self.plan.branches():
                failure = self._closing(FAILURE, closing, "?".join(f"afternotok:{job}" for job in jobs.values()), queued)
            last = self._closing(CLOSING, closing, "afterany:" + ":".join(str(job) for job in jobs.values()), queued)
            submitted = Submitted(jobs=jobs, closing=last, failure=failure, submitted_at=datetime.now(UTC))
            self._write(self.run.jobs, submitted.model_dump_json(indent=1))
        except BaseException:
            if queued:
                self.slurm.cancel(queued)
            self.transport.remove(str(self.run.root))
            raise
        return submitted

    def submit_alone(self, code: PurePosixPath, environment: Mapping[str, str], name: str, step: StepJob) -> None:
        """Queue one step of a dynamic pipeline, which runs already and whose frozen `code` it shares. Raises SlurmError."""
        try:
            self._write(self.run.environment, render_environment(environment))
            self._write(self.run.plan, self.plan.model_dump_json(indent=1))
            self._write_containers([step])
            job = self._step(name, step, [], code)
            self._write(self.run.jobs, Submitted(jobs={name: job}, closing=job).model_dump_json(indent=1))
        except BaseException:
            self.transport.remove(str(self.run.root))
            raise

    def _order(self) -> list[str]:
        return list(TopologicalSorter({name: step.after for name, step in self.plan.steps.items()}).static_order())

    def _step(self, name: str, step: StepJob, after: list[int], code: PurePosixPath) -> int:
        dependency = "afterok:" + ":".join(map(str, after)) if after else ""
        command = (self.python, "-m", "stacks.slurm.supervisor", str(self.run.root), name)
        script = self._script(name, self.run.step(name), step, command)
        return self._queue(replace(script, code=code, signal=True), step, dependency)

    def _closing(self, name: str, step: StepJob, dependency: str, queued: list[int]) -> int:
        folder = self.run.closing if name == CLOSING else self.run.failure
        command = (*self.plan.closing.command, *(["--failure"] if name == FAILURE else []))
        job = self._queue(self._script(name, folder, step, command), step, dependency)
        queued.append(job)
        return job

    def _script(self, name: str, folder: StepFolder, step: StepJob, command: tuple[str, ...]) -> JobScript:
        return JobScript(
            name=f"{self.plan.run_name}.{name}",
            settings=step.settings,
            resources=step.resources,
            step=folder,
            code=self.run.code,
            environment_files=(self.run.environment, folder.environment),
            command=command,
            comment=f"zenml run {self.plan.pipeline_run_id}",
            requeue=step.settings.max_restarts > 0,
            signal=False,
        )

    def _queue(self, script: JobScript, step: StepJob, dependency: str) -> int:
        # A configuration folder of its own: ZenML rewrites config.yaml in it, and jobs would get in each other's and the user's way.
        own = {**step.environment, "ZENML_CONFIG_PATH": str(script.step.root / "zenml")}
        self._write(script.step.environment, render_environment(own))
        self._write(script.step.script, render_job_script(script))
        return self.slurm.submit(str(script.step.script), dependency=dependency)

    def _write_containers(self, jobs: list[StepJob]) -> None:
        containers = [job.container for job in jobs if job.container]
        programs = {container.folder / "container.sh": render_container_script(container) for container in containers}
        if containers:
            programs |= {self.run.commands / name: host_command_script() for name in COMMANDS}
        for path, text in programs.items():
            self.transport.write(str(path), text.encode(), mode=0o700)

    def _write(self, path: PurePosixPath, text: str) -> None:
        self.transport.write(str(path), text.encode(), mode=0o600)


def isolated_runs(transport: Transport, run: RunDirectory) -> list[RunDirectory]:
    """The folders of a dynamic pipeline's isolated steps whose jobs are queued, in no order. Raises SlurmError."""
    found = transport.run(["find", str(run.isolated_steps), "-mindepth", "2", "-maxdepth", "2", "-name", "jobs.json"])
    return [RunDirectory(PurePosixPath(path).parent) for path in found.stdout.splitlines()]


def read_plan(transport: Transport, run: RunDirectory) -> Plan:
    """The plan in a run's folder."""
    return Plan.model_validate_json(transport.read(str(run.plan)))


def read_submitted(transport: Transport, run: RunDirectory) -> Submitted | None:
    """The jobs of a run, or None where its submission did not get to its end."""
    if not transport.exists(str(run.jobs)):
        return None
    return Submitted.model_validate(json.loads(transport.read(str(run.jobs))))
