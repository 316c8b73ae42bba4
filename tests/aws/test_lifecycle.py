"""The rehearsal starts, survives what can happen to it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import rehearsal as commands
from hls_foundry.errors import EndpointError
from stacks.aws.rehearsal import Rehearsal
from stacks.aws.rehearsal.processes import marked
from stacks.aws.rehearsal.record import read_record, write_record
from tests.aws.rehearsed import Account, until
from tests.conftest import ROOT, rehearsal_up
from tests.serving.scenes import scene_tiff

UP = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stacks.aws.rehearsal import Rehearsal
Rehearsal(Path(sys.argv[2])).up()
"""


def test_up_and_down_at_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tmp_path))
    with rehearsal_up(tmp_path) as rehearsal:
        first = rehearsal.record
        commands.up()
        assert rehearsal.record == first
        assert "is up already" in capsys.readouterr().err
        commands.status()
        assert "up since" in capsys.readouterr().out
        started = time.monotonic()
        commands.down()
        assert time.monotonic() - started < 5
    assert capsys.readouterr().out == "the rehearsal is down\n"
    assert sorted(path.name for path in (tmp_path / "rehearsal").iterdir()) == ["lock"]
    commands.down()
    commands.status()
    assert capsys.readouterr().out.count("no rehearsal") == 2
    with pytest.raises(EndpointError, match="rehearsal up starts one"):
        _ = rehearsal.environment


def test_a_shell_takes_over_what_up_prints_instead_of_its_own_settings(aws_account: Account) -> None:
    rehearsal = aws_account.rehearsal
    own = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "x", "NO_PROXY": "a b,$(exit 9)", "HLS_FOUNDRY_HOME": str(rehearsal.home.parent)}
    up = f'set -eu; eval "$({sys.executable} {ROOT}/run.py rehearsal up)"; env -0'
    there = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(["bash", "-c", up], env={**there, **own}, capture_output=True, text=True, check=True, timeout=60)
    inside = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & set(inside)
    wanted = {**rehearsal.environment, "NO_PROXY": "127.0.0.1,a b,$(exit 9)"}
    assert {name: inside[name] for name in wanted} == wanted
    assert "is up already" in done.stderr


def test_a_runtime_that_died_comes_back_with_its_endpoints(tmp_path: Path, archives: tuple[Path, Path]) -> None:
    with rehearsal_up(tmp_path) as rehearsal:
        held = Account(rehearsal, "t")
        name = _endpoint(held, archives[0])
        record = rehearsal.record
        assert record is not None
        assert record.runtime is not None
        os.kill(record.runtime.pid, signal.SIGKILL)
        until(lambda: not rehearsal.running)
        held.sm.delete_model(ModelName="t-one")
        rehearsal.up()
        held.wait(name)
        assert held.runtime.invoke_endpoint(EndpointName=name, Body=scene_tiff(64), ContentType="image/tiff")["ContentType"]
        assert len(marked(rehearsal.home)) == 3
        assert len(rehearsal.processes) == 3
        os.kill(rehearsal.faults.containers(name)[0]["pid"], signal.SIGSTOP)  # one that does not listen to SIGTERM
        rehearsal.down()
    assert marked(rehearsal.home) == []


def _endpoint(held: Account, archive: Path) -> str:
    name = held.create("flood", held.config("one", held.model("one", held.put("model.tar.gz", archive))))
    held.wait(name)
    return name


def test_a_start_that_was_killed_is_cleared_by_the_next(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    with subprocess.Popen([sys.executable, "-c", UP, str(ROOT), str(tmp_path)]) as starting:
        until(lambda: len(marked(rehearsal.home)) == 2)
        starting.kill()
    assert not rehearsal.running
    orphans = marked(rehearsal.home)
    with rehearsal_up(tmp_path) as again:
        assert again.running
        assert not any(process.alive for process in orphans)
        assert len(marked(again.home)) == 2
    assert marked(rehearsal.home) == []


def test_records_of_what_is_gone_and_damaged_ones_are_no_obstacle(tmp_path: Path) -> None:
    said: list[str] = []
    with rehearsal_up(tmp_path) as rehearsal:
        record = rehearsal.record
        assert record is not None
        rehearsal.down()
        write_record(rehearsal.home, record)  # as after a reboot
        assert not rehearsal.running
        Rehearsal(tmp_path, said.append).down()
        assert read_record(rehearsal.home) is None
        (rehearsal.home / "rehearsal.json").write_text(json.dumps({"schema": 1}))
        with pytest.raises(EndpointError, match="damaged"):
            _ = rehearsal.record
        Rehearsal(tmp_path, said.append).down()
        assert read_record(rehearsal.home) is None
    assert said == ["the rehearsal is down"] * 2


def test_two_starts_at_once_make_one_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UP, str(ROOT), str(tmp_path)]
    with rehearsal_up(tmp_path) as rehearsal:
        rehearsal.down()
        both = [subprocess.Popen(command) for _ in range(2)]
        assert [one.wait(60) for one in both] == [0, 0]
        assert len(marked(rehearsal.home)) == 2


def test_the_environment_takes_the_place_of_the_users_own(aws_account: Account) -> None:
    own = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "secret", "HOME": "/home/me"}
    inside = aws_account.rehearsal.environment_in(own)
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & set(inside)
    assert inside["HOME"] == "/home/me"
    assert inside["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
