"""A run made by hand: its folder as the orchestrator leaves it, tiny jobs on a real cluster in place of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller
from stacks.slurm.plan import ClosingStep, Plan, PlannedStep, Submitted
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.transport import Completed, LocalTransport


class CountingTransport(LocalTransport):
    """The real one, which also notes what it was asked to run."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self.commands: list[str] = []

    def run(self, command: Sequence[str], *, input: bytes | None = None, timeout: float = 60) -> Completed:
        self.commands.append(Path(command[0]).name)
        return super().run(command, input=input, timeout=timeout)


@dataclass(frozen=True)
class TinyJob:
    """What a step's job does, after which others, and its #SBATCH options."""

    lines: str
    after: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class HandMadeRun:
    """A run that was submitted."""

    run: RunDirectory
    plan: Plan
    submitted: Submitted
    environment: Mapping[str, str]
    transport: CountingTransport = field(repr=False)

    def follower(self, *, least_s: float = 0.3) -> Follower:
        return Follower(Slurm(self.transport), self.transport, self.run, self.plan, self.submitted, Poller(least_s=least_s))

    def cancel(self) -> None:
        """Leave nothing behind."""
        self.transport.run(["scancel", *map(str, self.submitted.ids())])


def submit(folder: Path, environment: Mapping[str, str], steps: Mapping[str, TinyJob], *, closing: str = "true") -> HandMadeRun:
    """Write the run's folder and queue its jobs, with a closing job after all of them."""
    transport, run, jobs = CountingTransport(environment), RunDirectory(PurePosixPath(folder)), dict[str, int]()
    slurm = Slurm(transport)
    for name, job in steps.items():
        after = ":".join(str(jobs[other]) for other in job.after)
        jobs[name] = _queue(slurm, Path(run.step(name).root), job, f"afterok:{after}" if after else "")
    last = _queue(slurm, Path(run.closing.root), TinyJob(closing), "afterany:" + ":".join(map(str, jobs.values())))
    plan = plan_of({name: job.after for name, job in steps.items()})
    submitted = Submitted(jobs=jobs, closing=last)
    Path(run.plan).write_text(plan.model_dump_json())
    Path(run.jobs).write_text(submitted.model_dump_json())
    return HandMadeRun(run, plan, submitted, environment, transport)


def plan_of(steps: Mapping[str, tuple[str, ...]]) -> Plan:
    """A plan of steps (name → those before it) whose commands do nothing."""
    return Plan(
        run_id="r",
        run_name="a-run",
        pipeline_run_id="p",
        snapshot_id="s",
        execution_mode="fail_fast",
        steps={name: PlannedStep(folder=f"steps/{name}", command=("true",), after=after) for name, after in steps.items()},
        closing=ClosingStep(folder="closing", command=("true",)),
    )


def _queue(slurm: Slurm, folder: Path, job: TinyJob, dependency: str) -> int:
    folder.mkdir(parents=True)
    options = (
        "--kill-on-invalid-dep=yes",
        "--open-mode=append",
        f"--output={folder}/log",
        f"--job-name={folder.name}",
        "--mem=40",
        *job.options,
    )
    script = folder / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options), job.lines, ""]))
    return slurm.submit(str(script), dependency=dependency)
