"""The job that ends a run: `python -m stacks.slurm.closing RUN_FOLDER`, after all steps; with `--failure`, as soon as one has failed.

It runs whether or not anybody is watching, so that a step that was killed, timed out or lost its node does not stay "running".
"""

from __future__ import annotations

from hls_foundry.collection import collect_seldom

if __name__ == "__main__":
    collect_seldom()

import logging
import os
import sys
import time
from pathlib import PurePosixPath

from zenml.enums import ExecutionStatus

from stacks.slurm.client import Slurm
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.submission import isolated_runs, read_plan, read_submitted
from stacks.slurm.transport import LocalTransport
from stacks.slurm.truth import Truth, end_steps, recorded, write_truth

SETTLING_S = 30
"""How long jobs that are completing, or about to be cancelled, may take until their end is written as it is then."""
PATIENCE_S = 300
"""How long Slurm and ZenML's store may be out of reach before this job gives up."""
PATIENCE = "HLS_CLOSING_PATIENCE_S"
"""Environment variable with another one."""


def main(arguments: list[str]) -> int:
    """Write the end of the run in the folder given, or, with --failure, of what has ended of it; returns the exit code.

    Where the store or Slurm is out of reach it tries again for some minutes. It may run twice, or beside another.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run, failure = RunDirectory(PurePosixPath(arguments[0])), "--failure" in arguments[1:]
    patience = float(os.environ.get(PATIENCE) or PATIENCE_S)
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            close(run, failure=failure)
            return 0
        except Exception as error:  # whatever the store's driver, its HTTP client or Slurm raises: the end has to be written all the same
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if time.monotonic() + pause > deadline:
            break
        print(f"{said}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 30.0)
    job = os.environ.get("SLURM_JOB_ID", "")
    again = f"scontrol requeue {job}" if job else f"this command again, or zenml pipeline runs refresh {run.root.name}"
    print(f"the end of the run could not be written in {patience:g} s ({said}); once that is mended: {again}", file=sys.stderr)
    return 1


def close(run: RunDirectory, *, failure: bool) -> None:
    """Do so once. Raises what Slurm's client and ZenML's store raise."""
    transport = LocalTransport({})
    slurm = Slurm(transport)
    plan, submitted = read_plan(transport, run), read_submitted(transport, run)
    if not recorded(plan):
        print(f"run {plan.run_name} was deleted from ZenML: there is no end to write")
        return
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


def _end_isolated(slurm: Slurm, transport: LocalTransport, run: RunDirectory) -> None:
    """Steps that a dynamic pipeline submitted and that outlived it: nobody waits for them any more."""
    for inner in isolated_runs(transport, run):
        truth = Truth(slurm, transport, inner, read_plan(transport, inner), read_submitted(transport, inner))
        if not truth.all_ended and truth.submitted:
            slurm.cancel(truth.submitted.ids())
            time.sleep(1)
            truth = Truth(slurm, transport, inner, truth.plan, truth.submitted)
        end_steps(truth)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
