"""The job that ends a run: `python -m stacks.slurm.closing RUN_FOLDER`, after all steps; with `--failure`, as soon as one has failed.

It runs whether or not anybody is watching, so that a step that was killed, timed out or lost its node does not stay "running".
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path, PurePosixPath

from zenml.enums import ExecutionStatus

from stacks.slurm.client import Slurm
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.submission import read_plan, read_submitted
from stacks.slurm.transport import LocalTransport
from stacks.slurm.truth import Truth, end_steps, write_truth

SETTLING_S = 30
"""How long jobs that are completing, or about to be cancelled, may take until their end is written as it is then."""


def main(arguments: list[str]) -> int:
    """Write the end of the run in the folder given, or, with --failure, of what has ended of it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run = RunDirectory(PurePosixPath(arguments[0]))
    transport = LocalTransport({})
    slurm = Slurm(transport)
    plan, submitted = read_plan(transport, run), read_submitted(transport, run)
    failure = "--failure" in arguments[1:]
    truth = Truth(slurm, transport, run, plan, submitted)
    deadline = time.monotonic() + SETTLING_S
    while submitted and not failure and not truth.all_ended and time.monotonic() < deadline:
        time.sleep(1)
        truth = Truth(slurm, transport, run, plan, submitted)
    if plan.dynamic and not failure:
        _end_isolated(slurm, transport, run)
    outcome = write_truth(truth, final=not failure)
    for step, cost in outcome.steps.items():
        print(f"{step:<16} {cost.zenml or 'not started':<12} {cost.reason}")
    print(f"run {outcome.status}: {outcome.reason or f'{outcome.node_hours:.4f} node-hours'}")
    if failure and submitted and outcome.status == ExecutionStatus.FAILED.value:
        others = [job for job in submitted.jobs.values() if job != int(os.environ.get("SLURM_JOB_ID", "0"))]
        if plan.execution_mode == "fail_fast":
            slurm.cancel(others)
        elif plan.execution_mode == "stop_on_failure":
            slurm.cancel(others, state=JobState.PENDING)
    return 0


def _end_isolated(slurm: Slurm, transport: LocalTransport, run: RunDirectory) -> None:
    """Steps that a dynamic pipeline submitted and that outlived it: nobody waits for them any more."""
    for folder in sorted(Path(run.isolated_steps).glob("*/jobs.json")):
        inner = RunDirectory(PurePosixPath(folder.parent))
        truth = Truth(slurm, transport, inner, read_plan(transport, inner), read_submitted(transport, inner))
        if not truth.all_ended and truth.submitted:
            slurm.cancel(truth.submitted.ids())
            time.sleep(1)
            truth = Truth(slurm, transport, inner, truth.plan, truth.submitted)
        end_steps(truth)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
