from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hls_foundry.errors import ChipError, Preempted, TrainingError
from hls_foundry.training.agent import Machine, agent_command, write_settings
from hls_foundry.training.interruption import LAUNCHER_PID, StopRequest
from hls_foundry.training.launcher import launch_environment
from hls_foundry.training.reports import WorkerReport, outcome
from hls_foundry.training.request import TrainingRequest

MakeRequest = Callable[..., TrainingRequest]
ROOT = Path(__file__).resolve().parents[2]
LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4567"


def report(rank: int, state: str, time: float = 0.0, error: str = "", message: str = "", signal: int = 0) -> WorkerReport:
    return WorkerReport(rank, 1, state, time, error, message, f"Traceback of rank {rank}", signal)


def test_the_first_error_of_a_ranks_own_is_the_cause(make_request: MakeRequest) -> None:
    reports = [
        report(0, "failed", 1.0, "RuntimeError", LOST),
        report(1, "failed", 2.0, "ChipError", "chip.tif is cut short: fetch it again"),
    ]
    with pytest.raises(ChipError, match=r"^chip\.tif is cut short: fetch it again$"):
        outcome(make_request(), reports, 0, 2)


def test_an_unforeseen_error_names_rank_and_line(make_request: MakeRequest, caplog: pytest.LogCaptureFixture) -> None:
    reports = [report(0, "failed", 2.0, "RuntimeError", LOST), report(1, "failed", 1.0, "KeyError", "KeyError: 'x'\nmore")]
    with pytest.raises(TrainingError, match=r"^rank 1 failed: KeyError: 'x' \("):
        outcome(make_request(), reports, 0, 2)
    assert "Traceback of rank 1" in caplog.text


def test_a_rank_that_was_killed_is_named(make_request: MakeRequest) -> None:
    with pytest.raises(TrainingError, match="rank 1 of 2 was killed"):
        outcome(make_request(**{"training.processes": 2}), [report(0, "failed", 1.0, "RuntimeError", LOST), report(1, "running")], 0, 2)


def test_preemption_tells_the_signal(make_request: MakeRequest) -> None:
    with pytest.raises(Preempted) as stopped:
        outcome(make_request(), [report(0, "preempted", 1.0, "Preempted", "stopped", 10), report(1, "preempted", signal=10)], 15, 2)
    assert stopped.value.signal_number == 10
    with pytest.raises(Preempted, match="before the first step"):
        outcome(make_request(), [report(0, "running")], 15, 2)


def test_the_command_leaves_nothing_to_the_users_own_settings(make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    request = make_request(**{"training.processes": 2})
    path = request.folder / "request.json"
    write_settings(path)
    command = agent_command(path, request.training.processes, Machine())
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("--main_process_port") + 1] == "0"
    settings = json.loads(Path(command[command.index("--config_file") + 1]).read_text())
    assert settings["compute_environment"] == "LOCAL_MACHINE"
    environment = launch_environment(os.environ, 1)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_workers_stop_when_their_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setenv(LAUNCHER_PID, str(gone.pid))
    assert StopRequest().check() == signal.SIGTERM
    monkeypatch.setenv(LAUNCHER_PID, str(os.getpid()))
    assert StopRequest().check() == 0


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.check() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), ("{", "Invalid JSON"), ("{}", "Field required")],
)
def test_a_bad_request_is_one_line_and_exit_2(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_text(content)
    done = subprocess.run([sys.executable, "-m", "hls_foundry.training", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
