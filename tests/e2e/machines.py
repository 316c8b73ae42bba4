"""What end-to-end tests run run.py with: a home and a ZenML store of their own, and the smallest configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--data", "synthetic://?chips=24&size=96&seed=3",
    "--set", "training.crop_size=96", "--set", "training.epochs=2", "--set", "inference.tile=96",
    "--set", "promotion.min_iou=0", "--set", "promotion.min_gain_over_baseline=-1",
)  # fmt: skip


@dataclass
class Machine:
    """One user's home folder and ZenML store."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HLS_FOUNDRY_HOME": str(self.folder / "foundry"), "ZENML_CONFIG_PATH": str(self.folder / "zenml")}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "run.py"), *arguments]

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**self.environment, **environment}
        answer = subprocess.run(self.command(*arguments), env=variables, capture_output=True, text=True, timeout=400)
        assert answer.returncode == expect, f"{arguments}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
        return answer

    def shell(self, line: str) -> str:
        """What a line prints that was told to be typed in the repository."""
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**self.environment, "PATH": places}
        answer = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert answer.returncode == 0, f"{line}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
        return answer.stdout

    def summary(self, *arguments: str, expect: int = 0, **environment: str) -> dict:
        """The JSON of a command, with what it printed as `stdout`."""
        file = self.folder / "summary.json"
        answer = self.run(*arguments, "--json", str(file), expect=expect, **environment)
        return {**json.loads(file.read_text()), "stdout": answer.stdout}
