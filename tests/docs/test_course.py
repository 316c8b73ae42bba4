"""The course's pages: their commands parse, their programs compile, their links and figures exist. `make course` runs them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

import run
from tests.docs.course import COURSE, ROOT, run_course
from tests.test_docs import COMMAND, LINK, parse

PAGES = sorted(COURSE.glob("*.md"))
CHAPTERS = run_course.chapters()
FIGURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
OPTIONS = {"exit", "needs", "optional", "without", "output", "numbers"}
by_name = {"ids": lambda page: page.name}


def words(shell: str) -> list[str]:
    """The arguments that end at a pipe, a redirection or a bracket."""
    import shlex

    return shlex.split(re.split(r"[|)`]|(?<=\s)[<>]", shell)[0], comments=True)


def test_the_course_has_its_three_chapters() -> None:
    assert [page.name for page in CHAPTERS] == ["1-fine-tuning.md", "2-endpoint.md", "3-inference.md"]


@pytest.mark.parametrize("page", PAGES, **by_name)
def test_every_command_line_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = [block.text for block in run_course.blocks(text) if block.kind == "bash"]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    for line in [*inline, *(line for block in blocks for line in block.splitlines())]:
        for found in COMMAND.finditer(line):
            try:
                parse(run.main, "run.py", words(found[1] or ""))
            except click.UsageError as error:
                pytest.fail(f"{page.name}: {line}: {error.format_message()}")


@pytest.mark.parametrize("page", CHAPTERS, **by_name)
def test_every_block_is_sound(page: Path) -> None:
    """Shell and Python can be read, what follows as output follows something that prints, and each option is known."""
    before = None
    for block in run_course.blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        assert block.kind in ("bash", "python", "text"), f"{where}: blocks are bash, python or text"
        assert {option.partition("=")[0] for option in block.options} <= {"exit", "needs", "optional", "without", "output", "numbers"}, (
            where
        )
        if block.kind == "bash":
            checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
            assert not checked.returncode, f"{where}: {checked.stderr}"
        elif block.kind == "python":
            compile(block.text, where, "exec")
        elif block.is_output:
            assert before is not None, f"{where}: output of what?"
            assert before.runs, f"{where}: output of what?"
            assert block.text.strip(), f"{where}: shows nothing"
        before = block


@pytest.mark.parametrize("page", PAGES, **by_name)
def test_links_and_figures_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name} links to {target}#{heading}"


def test_figures_are_small_and_each_is_shown() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in FIGURE.findall(page.read_text(encoding="utf-8"))}
    there = {path.resolve() for path in (COURSE / "images").iterdir()}
    assert shown == there
    assert all(path.stat().st_size < 300_000 for path in there)


@pytest.mark.parametrize("page", CHAPTERS, **by_name)
def test_every_chapter_ends_with_two_exercises_and_their_solutions(page: Path) -> None:
    exercises = page.read_text(encoding="utf-8").split("\n## Exercises\n")[1]
    assert len(re.findall(r"^\*\*\d\.\*\*", exercises, re.M)) == 2
    solutions = re.findall(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", exercises, re.M | re.S)
    assert len(solutions) == 2
    assert all(any(block.runs for block in run_course.blocks(solution)) for solution in solutions)


def test_make_runs_the_course_and_draws_its_figures() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "docs/run_course.py" in makefile
    assert "docs/draw_course_figures.py" in makefile
