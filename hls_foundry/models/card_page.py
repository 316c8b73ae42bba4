"""Draws a model card: its Markdown as HTML."""

from __future__ import annotations

import re

from hls_foundry.report import Section, facts

HEAD = re.compile(r"\A---\n(.*?)\n---\n+", re.DOTALL)


def card_sections(card: str) -> list[Section]:
    """The Markdown of a bundle's README.md; HTML in it is shown as text, and no picture of it is loaded."""
    from markdown_it import MarkdownIt

    head = HEAD.match(card)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image"]).render(card[head.end() :] if head else card)
    # The page has a heading already: the card's own go two levels down, where its first is 1 or 2.
    body = re.sub(r"<(/?)h([1-4])>", lambda found: f"<{found[1]}h{min(int(found[2]) + 2, 4)}>", body)
    pairs = [line.partition(":") for line in head[1].splitlines()] if head else []
    known = facts({name.strip(): value.strip() for name, _, value in pairs if value.strip()})
    return [Section("Model card", body + (f"<h3>For the Hugging Face Hub</h3>{known}" if pairs else ""))]
