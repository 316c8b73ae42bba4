"""The executor of the course: what it runs, what it holds against the page, and what it calls a problem."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.course import run_course

Run = Callable[..., Any]


@pytest.fixture
def chapter(tmp_path: Path) -> Run:
    """Run a page of the given text; returns the outcome."""

    def run(text: str, *, timeout: float = 60) -> Any:
        page = tmp_path / "1-page.md"
        page.write_text(text, encoding="utf-8")
        with run_course.Shell(tmp_path, run_course.environment(tmp_path)) as shell:
            return run_course.run_chapter(page, shell, timeout=timeout)

    return run


def test_blocks_share_one_shell_and_their_output_is_compared(chapter: Run) -> None:
    outcome = chapter(
        "```bash\nexport A=7\ncd ~\n```\n```bash\necho a is $A\npwd >&2\n```\n```text output\na is 7\n…/test_blocks…\n```\n"
        "```python\nimport os\nprint(os.environ['A'] * 2)\n```\n```text output\n77\n```\n",
    )
    # Programs are run by .venv/bin/python, and the block before has left the repository's folder.
    assert outcome.problems == ["1-page.md:13: ended with 127, not 0"]


def test_a_program_runs_as_the_page_has_it(chapter: Run) -> None:
    outcome = chapter("```python\nprint('$HOME')\n\nprint(6 * 7)\n```\n```text output\n$HOME\n42\n```\n")
    assert (outcome.problems, outcome.ran) == ([], 1)


def test_a_line_that_is_not_printed_is_a_problem(chapter: Run) -> None:
    outcome = chapter("```bash\necho one; echo two\n```\n```text output\ntwo\none\n```\n")
    assert outcome.problems == ["1-page.md:4: not printed (in this order): one"]


@pytest.mark.parametrize("script", ["false\necho later", "ls /not-there | cat\ntrue", "python3 -c 'raise SystemExit(3)'"])
def test_any_line_that_fails_is_a_problem_and_ends_the_chapter(chapter: Run, script: str) -> None:
    outcome = chapter(f"```bash\n{script}\n```\n```bash\ntouch ~/went-on\n```\n")
    assert len(outcome.problems) == 1
    assert outcome.ran == 1


def test_a_failure_that_the_page_announces_is_none(chapter: Run) -> None:
    assert chapter("```bash exit=3\n(exit 3)\n```\n```bash\ntrue\n```\n").problems == []
    assert chapter("```bash exit=3\ntrue\n```\n").problems == ["1-page.md:1: ended with 0, not 3"]


def test_solutions_inside_details_run_and_plain_text_does_not(chapter: Run) -> None:
    outcome = chapter("<details><summary>Solution</summary>\n\n```bash\nfalse\n```\n</details>\n")
    assert outcome.problems
    assert chapter("```text\nrm -rf /\n```\n").ran == 0


def test_a_command_that_hangs_is_ended_with_what_it_started(chapter: Run, tmp_path: Path) -> None:
    outcome = chapter("```bash\nsleep 300 &\necho $! > ~/child\nsleep 300\n```\n", timeout=3)
    assert outcome.problems == ["1-page.md:1: has not ended after 3 s"]
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    for _ in range(100):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":  # ended, and perhaps not yet reaped
            return
        time.sleep(0.1)
    pytest.fail("what the block started in the background goes on")


def test_blocks_for_a_program_that_is_not_there_are_skipped_with_the_reason(chapter: Run) -> None:
    outcome = chapter(
        "```bash needs=no-such-program\nfalse\n```\n```text output\nnothing\n```\n```bash without=no-such-program\ntrue\n```\n"
    )
    assert outcome.skipped == ["1-page.md:1: no no-such-program on the PATH"]
    assert (outcome.problems, outcome.ran) == ([], 1)


@pytest.mark.parametrize(("need", "require", "code"), [("needs", "", 0), ("needs", "all", 1), ("optional", "all", 0)])
def test_what_ci_must_have_is_not_skipped_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], need: str, require: str, code: int
) -> None:
    page = tmp_path / "1-page.md"
    page.write_text(f"```bash {need}=no-such-program\nfalse\n```\n", encoding="utf-8")
    monkeypatch.setenv("HLS_REQUIRE", require)
    monkeypatch.setattr(run_course, "_clean_up", lambda *_: None)
    assert run_course.main([str(page)]) == code
    assert "no no-such-program on the PATH" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("expected", "numbers", "same"),
    [
        ("test IoU 0.75, F1 …", None, False),
        ("test IoU 0.753, … 0.859", None, True),
        ("test IoU 0.75, F1 …", "any", True),
        ("test IoU 0.75, F1 0.86", "1%", True),
        ("test IoU 0.60, F1 0.86", "1%", False),
        ("test IoU 0.753,  F1   0.859", None, True),
        ("IoU 0.753", None, False),
        ("…\n…IoU 0.753…", None, True),
    ],
)
def test_lines_are_compared_as_the_page_asks(expected: str, numbers: str | None, same: bool) -> None:
    assert (run_course.unmatched(expected, "chips 120\ntest IoU 0.753, F1 0.859\n", numbers) is None) == same


def test_the_callers_settings_do_not_reach_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLS_FOUNDRY_HOME", "/elsewhere")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    variables = run_course.environment(tmp_path)
    assert variables["HOME"] == str(tmp_path)
    assert not {"HLS_FOUNDRY_HOME", "AWS_PROFILE"} & set(variables)


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        run_course.blocks("text\n```bash\nls\n")
