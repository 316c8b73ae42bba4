"""ZenML's store as run.py opens it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_first_runs_at_once_share_a_new_store(tmp_path: Path) -> None:
    environment = {**os.environ, "HLS_FOUNDRY_HOME": str(tmp_path / "foundry"), "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    command = [sys.executable, str(ROOT / "run.py"), "status"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for process in both:
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert told == "no runs yet: python run.py starts one\n"
