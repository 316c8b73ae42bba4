"""What run.py says of itself fits a screen of 80 × 24, and colours are for terminals that want them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import run

ROOT = Path(__file__).resolve().parents[2]


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield above
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name)


@pytest.mark.parametrize("command", list(commands(run.main)), ids=lambda command: " ".join(command) or "run.py")
def test_help_fits_a_screen(command: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(run.main, [*command, "--help"], terminal_width=80)
    lines = answer.output.splitlines()
    assert answer.exit_code == 0
    assert len(lines) < 24, "one is for the prompt"
    assert max(map(len, lines)) <= 80


def test_help_names_every_command_and_option_in_a_line_each() -> None:
    told = CliRunner().invoke(run.main, ["--help"], terminal_width=80).output
    rows = told.split("Commands (each has --help):\n")[1].splitlines()
    named = [name for row in rows for name in re.split(r" {2,}", row.strip())[0].split(", ")]
    assert sorted(named) == sorted(run.main.commands)
    for option in run.main.params:
        assert len(re.findall(rf"^  {option.opts[0]} .*\S", told, re.M)) == 1


def at_a_terminal(*arguments: str, home: Path, **environment: str) -> str:
    """What run.py writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables |= {"HLS_FOUNDRY_HOME": str(home / "foundry"), "ZENML_CONFIG_PATH": str(home / "zenml"), "TERM": "xterm-256color"}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=variables | environment, close_fds=True) as process:
        os.close(theirs)
        told = b""
        try:
            while piece := os.read(ours, 4096):
                told += piece
        except OSError:  # Linux's way to say that the other end is closed
            pass
        process.wait(timeout=60)
    os.close(ours)
    return told.decode()


def test_colours_are_for_terminals_and_not_with_no_color(tmp_path: Path) -> None:
    wrong = ("--stack", "nowhere")
    assert "\x1b[31merror: " in at_a_terminal(*wrong, home=tmp_path)
    assert "\x1b" not in at_a_terminal(*wrong, home=tmp_path, NO_COLOR="1")
    piped = subprocess.run([sys.executable, ROOT / "run.py", *wrong], capture_output=True, text=True, timeout=60)
    assert piped.stderr.startswith("error: no stack 'nowhere'")
    assert piped.stdout == ""
