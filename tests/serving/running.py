"""A serving process for tests: the real command, a real port, its log on disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

from hls_foundry.endpoints.client import EndpointClient

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningServer:
    """`python -m hls_foundry.serving serve` with `environment`; a context manager that leaves no process behind."""

    def __init__(self, log: Path, **environment: str) -> None:
        self.log, self.port = log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SM_", "SAGEMAKER_", "HLS_"))}
        # Two torch threads would fight with the other tests on this machine's two cores.
        settings = {"SAGEMAKER_BIND_TO_PORT": str(self.port), "HLS_HOST": "127.0.0.1", "OMP_NUM_THREADS": "1", **environment}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hls_foundry.serving", "serve"], cwd=ROOT, env=inherited | settings, stdout=output, stderr=output
            )
        self.client = EndpointClient(self.url, timeout=60)

    def wait_ready(self) -> RunningServer:
        deadline = time.monotonic() + START_S
        while not self.client.ping():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def resident_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
