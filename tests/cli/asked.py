"""Asks the process of zenml_session.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Session:
    """The process of zenml_session.py."""

    def __init__(self, home: Path) -> None:
        own = {"ZENML_CONFIG_PATH": str(home / "zenml"), "HLS_FOUNDRY_HOME": str(home / "foundry")}
        self.log = (home / "session.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.zenml_session"],
            env={**os.environ, **own},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, name: str, *arguments: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, Path(self.log.name).read_text()[-2000:]
        return json.loads(answer)

    def run(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("invoke", arguments)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.log.close()
