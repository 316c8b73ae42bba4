"""How a run ends on the screen: the step, the reason, the log's place and the next command; and JSON that nothing else is mixed into."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.cost import RunFailed, SlurmRecord
from cli.summary import RUN, Summary, lines
from hls_foundry.errors import EndpointError
from stacks.slurm.plan import Outcome, StepOutcome

ROOT = Path(__file__).resolve().parents[2]


def ending(stack: str, problem: Exception, *, started: bool = True, slurm: SlurmRecord | None = None) -> list[str]:
    """The last lines of a run whose step `deploy` raised `problem`."""
    summary = Summary(stack=stack, task="flood")
    if started:
        summary.runs = [{"pipeline": "deploy", "name": "flood-deploy-1", "id": "1", "url": "", "status": "failed"}]
        summary.timings, summary.failed_step = {"place": 1.0, "deploy": 2.0}, "deploy"
        summary.slurm = [slurm] if slurm else []
    summary.fail(problem)
    shown = [click.unstyle(line) for line in lines(summary)]
    return shown[next(number for number, line in enumerate(shown) if line.startswith("error")) :]


@pytest.mark.parametrize("stack", ["local", "aws"])
def test_a_failed_run_ends_with_step_reason_log_and_next_command(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--stack", stack, "--set", "training.epochs=2 "])
    told = ending(stack, EndpointError("no room for the model: free 2 GB"))
    assert told == [
        "error in step deploy: no room for the model: free 2 GB",
        f"  its log: {RUN} logs flood-deploy-1 --step deploy",
        "  next: once it is mended start the same command again: steps that are done are not repeated",
        f"  again: {RUN} --stack {stack} --set 'training.epochs=2 '",
    ]


def test_on_a_cluster_slurm_s_own_file_and_advice_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--stack", "hpc"])
    job = StepOutcome(zenml="failed", job_id=7, state="TIMEOUT", reason="Slurm job 7 TIMEOUT after 8 h")
    record = SlurmRecord("/shared/slurm/run", Outcome(status="failed", reason="", steps={"deploy": job}, node_hours=8.0))
    told = ending("hpc", RunFailed("the job ended"), slurm=record)
    assert told == [
        "error in step deploy: the job ended",
        f"  its log: {RUN} logs flood-deploy-1 --step deploy",
        "  Slurm job 7 TIMEOUT after 8 h",
        f"  its file: {record.log('deploy')}",
        "  next: give the step more time (settings in stacks/hpc.yaml), or start the same command again: "
        "it goes on from its last checkpoint",
        f"  again: {RUN} --stack hpc",
    ]


def test_of_what_nobody_foresaw_the_stack_is_checked_first() -> None:
    told = ending("local", RuntimeError("database is locked"))
    assert told[0] == "error in step deploy: database is locked"
    assert told[2] == f"  check: {RUN} doctor --stack local"


def test_the_step_is_named_once() -> None:
    assert ending("aws-managed", EndpointError("deploy: no such role"))[0] == "error in step deploy: no such role"


def test_without_a_run_no_log_is_named() -> None:
    assert not any("its log" in line for line in ending("local", EndpointError("x"), started=False))


PROGRAM = """
import subprocess, sys
from pathlib import Path
from cli.summary import Summary, standard_output_for, write
with standard_output_for(Path(sys.argv[1])):
    print("a library that prints")
    subprocess.run(["echo", "a child that prints"], check=True)
write(Summary(stack="local", task="flood"), Path(sys.argv[1]))
"""


def test_json_on_standard_output_is_all_that_is_there(tmp_path: Path) -> None:
    def printed(json_file: str) -> tuple[str, str]:
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM, json_file], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        return answer.stdout, answer.stderr

    out, told = printed("-")
    assert json.loads(out) == {"status": "completed", "stack": "local", "task": "flood", "runs": [], "timings_s": {}}
    assert "a library that prints" in told
    assert "a child that prints" in told
    out, told = printed(str(tmp_path / "summary.json"))
    assert "a library that prints" in out
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"
