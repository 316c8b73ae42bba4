"""The agent of one node: it ends with its workers once another start of the job has their training in hand."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hls_foundry.training.cluster import current_start

ROOT = Path(__file__).resolve().parents[2]
AGENT = """
import sys
from pathlib import Path
from hls_foundry.training import node
node.LOOK_S = 0.2
command = ["bash", "-c", "trap '' USR1 TERM; sleep 60 & echo $! > " + sys.argv[2] + "; wait; wait"]
sys.exit(node.run_agent(command, lambda: node.superseded(Path(sys.argv[1]), "7.0")) % 256)
"""


def test_workers_give_way_to_another_start_of_the_job(tmp_path: Path) -> None:
    request, note = tmp_path / "request.json", tmp_path / "worker"
    current_start(request).write_text("7.0")
    process = subprocess.Popen([sys.executable, "-c", AGENT, str(request), str(note)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker = psutil.Process(int(note.read_text()))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)  # its own start
        current_start(request).write_text("7.1")
        assert process.communicate(timeout=20)[0] == "start 7.1 of the job goes on with the training: the workers here give way\n"
        assert process.returncode == 256 - 9
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    finally:
        process.kill()
        process.wait()
