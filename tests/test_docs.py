"""What the pages tell people to type exists, their links lead somewhere, and what is made from the code is as the code says."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

import run
from hls_foundry.config import load_config
from stacks.definition import known_sites, known_stacks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|(?<=[\s`=\"]))(?:\.venv/bin/python |python |\./)?run\.py( [^`\n|│)]*)?")
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
TOLD = ("README.md", "aws.md", "dashboard.md", "hpc.md", "serving.md")


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `run.py …` in the page's code, as a shell would pass them."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    fenced = [line for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    code = [*inline, *(line for line in text.splitlines() if line.startswith("    ")), *fenced]
    return [shlex.split(found[1] or "", comments=True) for line in code for found in COMMAND.finditer(line)]


def parse(command: click.Command, name: str, arguments: list[str], parent: click.Context | None = None) -> dict[str, object]:
    """What click makes of the arguments of `command` and of the commands below it; runs nothing. Raises UsageError."""
    context = command.make_context(name, list(arguments), parent=parent)
    rest = [*getattr(context, "_protected_args", []), *context.args]
    below: dict[str, object] = {}
    if isinstance(command, click.Group) and rest:
        inner_name, inner, rest = command.resolve_command(context, rest)
        assert inner is not None
        below = parse(inner, str(inner_name), rest, context)
    return {**context.params, **below}


@pytest.mark.parametrize("page", [path for path in PAGES if path.name in TOLD], ids=lambda path: path.name)
def test_every_command_line_parses(page: Path) -> None:
    found = commands(page)
    for arguments in found:
        try:
            given = parse(run.main, "run.py", arguments)
        except click.exceptions.Exit:  # --help
            continue
        except click.UsageError as error:
            pytest.fail(f"{page.name}: run.py {shlex.join(arguments)}: {error.format_message()}")
        assert given.get("stack") in (*known_stacks(), "NAME", None)
        assert given.get("site") in (*known_sites(), "mine", "NAME", None)
        load_config(ROOT / "configs", overrides=[pair for pair in given.get("overrides") or () if pair != "KEY=VALUE"])  # type: ignore[attr-defined]


def test_commands_are_found_and_wrong_ones_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Use `run.py --stak hpc`:\n\n    HLS_NODES=2 .venv/bin/python run.py logs RUN --step x   # a comment\n")
    assert commands(page) == [["--stak", "hpc"], ["logs", "RUN", "--step", "x"]]
    with pytest.raises(click.UsageError, match="stak"):
        parse(run.main, "run.py", ["--stak", "hpc"])
    with pytest.raises(click.UsageError, match="clust"):
        parse(run.main, "run.py", ["clust", "up"])
    assert len(commands(ROOT / "README.md")) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name} links to {target}#{heading}"


@pytest.mark.parametrize("page", [path for path in PAGES if path.name in TOLD], ids=lambda path: path.name)
def test_make_targets_and_site_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"(?:^    |`)make ([a-z]+)", text, re.M):
        assert target in targets, f"{page.name}: make {target}"
    for file in re.findall(r"`((?:stacks|configs|docs|benchmarks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / file).exists() or Path(file).stem in ("NAME", "mine"), f"{page.name}: {file}"


def test_ci_runs_the_rehearsal_of_the_readme_in_the_course() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Three stacks")[1].split("\n## ")[0]
    told = [line.split("#")[0].strip() for line in section.splitlines() if line.startswith("    .venv/bin/python run.py")]
    assert len(told) >= 4
    assert "make course" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    course = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "course").glob("[0-9]-*.md")))
    for command in told:
        assert command in course, f"CI does not run '{command}': no chapter of the course has it"


def test_page_of_slurm_settings_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "write_configuration.py"))["slurm_page"]()
    assert (ROOT / "docs" / "hpc-settings.md").read_text(encoding="utf-8") == made, "run make docs"
