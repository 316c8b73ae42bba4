"""The README is read from the top in ten minutes, and the pages that it sends people to can be followed."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import run
from tests.docs.pages import ROOT
from tests.test_docs import LINK, commands, parse

PAGES = [ROOT / "docs" / "architecture.md", ROOT / "docs" / "data.md", *sorted((ROOT / "docs" / "extending").glob("*.md"))]


def test_readme_is_in_the_order_of_the_first_ten_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lead, *sections = re.split(r"^## ", text, flags=re.M)
    title, sentence, picture, two, _ = lead.split("\n\n", 4)
    assert title == "# HLS Foundry"
    assert re.fullmatch(r"[^.]+\.", sentence), "one sentence"
    assert re.fullmatch(r"!\[[^\]]+\]\(docs/images/[\w.-]+\)", picture)
    assert [line.split("#")[0].strip() for line in two.splitlines()] == ["make run", ".venv/bin/python run.py dashboard"]
    assert [part.splitlines()[0] for part in sections] == ["What came out", "Three stacks", "Where to go next", "What has not been run"]
    assert len(text.split()) < 1000, "ten minutes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse_and_links_lead_somewhere(page: Path) -> None:
    for arguments in commands(page):
        try:
            parse(run.main, "run.py", arguments)
        except click.UsageError as error:
            pytest.fail(f"{page.name}: {arguments}: {error.format_message()}")
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
