"""What a person sees of a run on Slurm: a live table at a terminal, one line a change elsewhere, and their reasons in words."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.watch import change, duration, nearest, settled, step_table, stream_logs, watch
from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller, StepRow
from stacks.slurm.states import JobState
from tests.slurm.hand_made import CountingTransport, HandMadeRun, TinyJob, submit

ROOT = Path(__file__).resolve().parents[2]
WATCH = """
import sys
from cli.watch import watch
from stacks.slurm.client import Slurm
from stacks.slurm.follow import Follower, Poller, open_run
from stacks.slurm.transport import LocalTransport
transport = LocalTransport({})
run, plan, submitted = open_run(transport, sys.argv[1])
follower = Follower(Slurm(transport), transport, run, plan, submitted, Poller(least_s=0.3))
sys.exit(0 if watch(follower, stream=sys.stderr) else 9)
"""
COLOUR = re.compile(r"\x1b\[[\d;]*\b3\d[\d;]*m")


def row(step: str, state: JobState = JobState.PENDING, reason: str = "", **more: Any) -> StepRow:
    values: dict[str, Any] = {"nodes": 1, "node_list": "", "elapsed_s": 0.0, "expected_start": None, "restarts": 0}
    return StepRow(step, 7, state, reason, **{**values, **more})


def shown(table: Any, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


class Terminal:
    """A process at a terminal of its own, 110 columns wide."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def until(self, found: Callable[[str], object], seconds: float = 40) -> str:
        """What the terminal has got, once `found` holds of it."""
        deadline = time.monotonic() + seconds
        while not found(self.seen) and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode()
                except OSError:  # the other side has closed
                    break
        assert found(self.seen), self.seen
        return self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Its exit code, all of its output read."""
        try:
            while select.select([self.master], [], [], 20)[0] and (more := os.read(self.master, 65536)):
                self.seen += more.decode()
        except OSError:
            pass  # EIO: the process has closed its side
        return self.process.wait(timeout=20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Callable[[HandMadeRun], Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(run: HandMadeRun, **more: str) -> Terminal:
        environment = {**os.environ, **run.environment, "TERM": "xterm-256color", **more}
        opened.append(Terminal([sys.executable, "-c", WATCH, str(run.run.root)], environment))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_elsewhere_than_at_a_terminal_each_change_is_a_line(slurm_cluster: Any, tmp_path: Path) -> None:
    steps = {
        "ingest": TinyJob("printf '10%%\\r50%%\\r100%% read\\n'; echo -e '\\033[31mred\\033[0m [bold]kept[/bold]'"),
        "fit": TinyJob("echo 'loss is nan'; exit 3", after=("ingest",)),
        "promote": TinyJob("true", after=("fit",)),
    }
    run, told = submit(tmp_path / "run", slurm_cluster.environment, steps), io.StringIO()
    try:
        assert watch(run.follower(), stream=told, pause=lambda _: time.sleep(0.1)) is True
    finally:
        run.cancel()
    lines = told.getvalue().splitlines()
    ids = run.submitted.jobs
    assert "ingest  │ 100% read" in lines, "a progress bar's last state"
    assert "ingest  │ red [bold]kept[/bold]" in lines
    assert "fit     │ loss is nan" in lines
    assert f"promote: job {ids['promote']} PENDING, waits for earlier steps (Dependency)" in lines
    assert any(line.startswith(f"fit: job {ids['fit']} FAILED after ") and "the step failed (NonZeroExitCode)" in line for line in lines)
    cancelled = f"promote: job {ids['promote']} CANCELLED after 0 s, an earlier step did not end well (DependencyNeverSatisfied)"
    assert cancelled in lines
    assert len(lines) == len(set(lines)), "nothing is said twice"
    assert "\x1b" not in told.getvalue()


def test_at_a_terminal_there_is_a_table_and_ctrl_c_leaves_the_run_alone(
    slurm_cluster: Any, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    steps = {
        "fine_tune": TinyJob("echo epoch 1 of 9; printf 'batch 1\\rbatch 2'; sleep 60"),
        "evaluate": TinyJob("true", after=("fine_tune",)),
    }
    run = submit(tmp_path / "run", slurm_cluster.environment, steps)
    try:
        seen = terminal(run)
        seen.until(lambda text: "RUNNING" in text and "epoch 1 of 9" in text and "batch 2" in text)
        assert "waits for" in seen.seen
        assert "(Dependency)" in seen.seen  # in a cell that may break lines
        assert COLOUR.search(seen.seen)
        seen.type(b"\x03")
        assert seen.end() == 9, seen.seen
        farewell = seen.seen[seen.seen.rindex("run a-run goes on without this terminal") :]
        for command in ("status a-run", "logs a-run --follow", "stop a-run"):
            assert f"run.py {command}" in farewell
        assert "Traceback" not in seen.seen
        assert run.follower().rows()[0].state is JobState.RUNNING
    finally:
        run.cancel()


def test_the_table_leaves_when_the_run_has_ended_and_no_color_is_respected(
    slurm_cluster: Any, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    run = submit(
        tmp_path / "run", slurm_cluster.environment, {"ingest": TinyJob("echo -e '\\033[32mread 36 chips'; sleep 1")}, closing="sleep 1"
    )
    try:
        seen = terminal(run, NO_COLOR="1")
        assert seen.end() == 0, seen.seen
        assert seen.seen.count("read 36 chips") == 1
        assert f"closing job {run.submitted.closing}" in seen.seen
        assert "COMPLETED" in seen.seen or "RUNNING" in seen.seen
        assert not COLOUR.search(seen.seen)
        assert "\x1b[?25h" in seen.seen, "the cursor is back"
    finally:
        run.cancel()


def test_a_cluster_that_is_down_for_a_while_is_told_once(slurm_cluster: Any, tmp_path: Path) -> None:
    run, told = submit(tmp_path / "run", slurm_cluster.environment, {"ingest": TinyJob("sleep 2")}), io.StringIO()
    dead, conf = tmp_path / "dead.conf", tmp_path / "slurm.conf"
    text = re.sub(r"(?m)^SlurmctldPort=.*$", "SlurmctldPort=9", Path(slurm_cluster.environment["SLURM_CONF"]).read_text())
    dead.write_text(re.sub(r"(?m)^(SlurmctldTimeout|MessageTimeout)=.*$", "", text) + "\nMessageTimeout=1\n")
    conf.symlink_to(dead)
    transport = CountingTransport({**slurm_cluster.environment, "SLURM_CONF": str(conf)})
    slurm = Slurm(transport, attempts=1)
    follower = Follower(slurm, transport, run.run, run.plan, run.submitted, Poller(least_s=0.1))
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            conf.unlink()
            conf.symlink_to(slurm_cluster.environment["SLURM_CONF"])
        time.sleep(0.1)

    try:
        assert watch(follower, stream=told, pause=pause) is True
    finally:
        run.cancel()
    lines = told.getvalue().splitlines()
    assert len([line for line in lines if "still asking" in line]) == 1
    assert lines.index("Slurm answers again") > 0
    assert any("COMPLETED" in line for line in lines)


def test_logs_are_followed_alone_for_one_step(slurm_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {"ingest": TinyJob("echo one"), "validate": TinyJob("echo two", after=("ingest",))}
    run, told = submit(tmp_path / "run", slurm_cluster.environment, steps), io.StringIO()
    try:
        assert stream_logs(run.follower(), stream=told, steps=["validate"], pause=lambda _: time.sleep(0.1)) is True
    finally:
        run.cancel()
    assert told.getvalue() == "validate │ two\n"
    assert capsys.readouterr().err == ""


def test_the_table_has_every_column(tmp_path: Path) -> None:
    soon = datetime.now().astimezone() + timedelta(seconds=1)
    rows = [
        row("ingest", JobState.COMPLETED, elapsed_s=75, node_list="n1"),
        row("fine_tune", JobState.RUNNING, nodes=2, node_list="n[1-2]", elapsed_s=3_725, restarts=1),
        row("evaluate", JobState.PENDING, "Resources", expected_start=soon),
    ]
    text = shown(step_table(rows, zenml={"ingest": "completed", "fine_tune": "running"})).splitlines()
    assert text[0].split() == ["step", "job", "state", "ZenML", "reason", "nodes", "elapsed", "starts"]
    assert text[2].split() == ["ingest", "7", "COMPLETED", "completed", "1", "(n1)", "1", "min", "15", "s"]
    assert text[3].split() == ["fine_tune", "7", "RUNNING", "running", "restart", "1", "2", "(n[1-2])", "1", "h", "02", "min"]
    assert "waits for free nodes (Resources)" in text[4]
    assert text[4].rstrip().endswith(soon.strftime("%H:%M"))


def test_forty_steps_fit_a_small_terminal() -> None:
    rows = [row(f"s{number}", JobState.COMPLETED if number < 20 else JobState.PENDING) for number in range(40)]
    rows[20] = row("s20", JobState.RUNNING)
    rows[3] = row("s3", JobState.FAILED)
    assert [one.step for one in nearest(rows, 5)] == ["s3", "s20", "s21", "s22", "s23"]
    text = shown(step_table(rows, height=5)).splitlines()
    assert len(text) <= 8
    assert "and 35 more steps: 19 COMPLETED, 16 PENDING" in text[-1]


def test_a_change_is_one_line_with_its_reason_and_expected_start() -> None:
    soon = datetime.now().astimezone()
    assert change(row("fit", JobState.RUNNING, node_list="n[1-2]")) == "fit: job 7 RUNNING on n[1-2]"
    waiting = change(row("fit", JobState.PENDING, "BeginTime", restarts=2, expected_start=soon))
    assert waiting == f"fit: job 7 PENDING, requeued, waits (BeginTime), restart 2, expected to start {soon:%H:%M}"
    assert change(row("fit", JobState.TIMEOUT, "TimeLimit", elapsed_s=61)) == (
        "fit: job 7 TIMEOUT after 1 min 01 s, ran into its time limit (TimeLimit)"
    )


@pytest.mark.parametrize(
    ("line", "left"), [("plain", "plain"), ("1%\r2%\r", "2%"), ("1%\r2%", "2%"), ("windows\r", "windows"), ("", ""), ("\r\r", "")]
)
def test_carriage_returns_leave_what_a_terminal_would_show(line: str, left: str) -> None:
    assert settled(line) == left


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1 min 01 s"), (7_500, "2 h 05 min"), (-1, "0 s")])
def test_durations_carry_their_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
