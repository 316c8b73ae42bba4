"""Pages as a reader follows them: the files that they say to write, the lines that they say to add, the commands that they say to type."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli", "configs", "containers", "docs", "hls_foundry", "pipelines", "stacks", "steps")
FILE = re.compile(r"^`([\w/.-]+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)
LINES = re.compile(r"^In `([\w/.-]+)`, in `(\w+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)


def copy_repository(folder: Path) -> Path:
    """The working tree, without tests, in `folder`, with this environment as its .venv."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room)
    for file in ("run.py", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / file, folder)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def write_what_it_says(page: Path, repository: Path) -> list[Path]:
    """Write and edit below `repository` what the page shows; the files that were touched."""
    text = page.read_text(encoding="utf-8")
    touched = []
    for name, content in FILE.findall(text):
        file = repository / name
        assert not file.exists(), f"{page.name} makes {name}, which is there already"
        file.write_text(content, encoding="utf-8")
        touched.append(file)
    for name, table, lines in LINES.findall(text):
        file = repository / name
        code = file.read_text(encoding="utf-8")
        head, opening, rest = code.partition(re.search(rf"^{table}\b.*[{{(]$\n", code, re.M).group())  # type: ignore[union-attr]
        file.write_text(head + opening + lines + rest, encoding="utf-8")
        touched.append(file)
    return touched


def commands(page: Path) -> list[str]:
    """The indented lines that call run.py."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith("    .venv/bin/python run.py")]
