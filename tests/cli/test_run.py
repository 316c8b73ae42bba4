"""run.py at the terminal: one line and exit code 2 for what a user can mend, before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "run.py", *arguments],
        env={**os.environ, "HLS_FOUNDRY_HOME": str(home / "foundry"), "ZENML_CONFIG_PATH": str(home / "zenml"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stack", "nowhere"), "no stack 'nowhere'"),
        (("--stack", "aws"), "add --rehearse"),
        (("--stack", "aws-managed"), "export HLS_AWS_TRAIN_ROLE"),
        (("--rehearse",), "--rehearse rehearses AWS: use it with --stack aws"),
        (("--detach",), "--detach needs a cluster"),
        (("--stack", "hpc", "--site", "cpu", "--detach", "--json", "x"), "leave out --detach"),
        (("--stack", "hpc", "--site", "jurecca"), "known sites: cpu, gpu, jureca, rehearsal"),
        (("--stack", "hpc", "--site", "rehearsal"), "python run.py cluster up"),
        (("--site", "cpu"), "stack 'local' has no sites"),
        (("--task", "snow"), "known tasks: burn_scars, flood"),
        (("--config", "missing.yaml"), "configuration file missing.yaml does not exist"),
        (("--set", "training.epoch=3"), "unknown key 'training.epoch'"),
        (("--data", "no/such/folder"), "no/such/folder"),
        (("--data", "synthetic://burn_scars?chips=0"), "chips"),
        (("predict", "missing.tif"), "missing.tif"),
        (("endpoints", "--delete", "nothing"), "nothing"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    answer = run(*arguments, home=tmp_path)
    assert answer.returncode == 2, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "zenml").exists(), "nothing was started"


def test_dry_run_says_what_would_run_and_starts_nothing(tmp_path: Path) -> None:
    answer = run("--task", "flood", "--dry-run", home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "pipeline 'all' of task 'flood' on stack 'local'" in answer.stdout
    assert not (tmp_path / "zenml").exists()
    assert not (tmp_path / "foundry").exists()


def test_listing_without_endpoints_says_how_to_make_one(tmp_path: Path) -> None:
    answer = run("endpoints", home=tmp_path)
    assert answer.returncode == 0
    assert "python run.py makes one" in answer.stdout


def test_doctor_names_each_check_and_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    answer = run("doctor", home=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("python", "packages", "memory", "home", "configuration", "stack", "zenml", "compute"):
        assert f"ok   {name}" in answer.stdout
    broken = run("doctor", "--stack", "nowhere", home=tmp_path)
    assert broken.returncode == 2
    assert "FAIL stack" in broken.stdout
