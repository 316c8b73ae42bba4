"""Self-contained HTML pages: what a person looks at after a run, with no network and no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.5rem; } img { max-width: 100%; height: auto; background: white; border-radius: .3rem; }
.scroll { max-height: 32rem; overflow: auto; font-variant-numeric: tabular-nums; }
.key span { display: inline-block; width: .9em; height: .9em; margin: 0 .35em 0 1em; vertical-align: -.1em; border: 1px solid var(--line); }
code, pre { background: var(--soft); border-radius: .3rem; padding: .1rem .3rem; } pre { padding: .6rem .8rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Section:
    """One part of a page: a heading and trusted HTML (text from data goes through `html.escape` first)."""

    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """One HTML document. `title` and `lead` are plain text; a strict content policy forbids every request to outside."""
    parts = "\n".join(f"<section><h2>{html.escape(section.title)}</h2>\n{section.body}</section>" for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>\n{parts}\n</body></html>\n"
    )


def text(value: str) -> str:
    """Text from data as HTML."""
    return html.escape(value)


def tiles(values: Mapping[str, str]) -> str:
    """Large figures side by side: label → text."""
    items = "".join(f'<div class="tile">{html.escape(label)}<b>{html.escape(value)}</b></div>' for label, value in values.items())
    return f'<div class="tiles">{items}</div>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table from rows of equal keys; floats with four significant digits."""
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(_cell(value) for value in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values."""
    body = "".join(f"<tr><th>{html.escape(str(key))}</th>{_cell(value)}</tr>" for key, value in values.items())
    return f"<table><tbody>{body}</tbody></table>"


def image(png: bytes, alternative: str) -> str:
    """A PNG inside the page."""
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def commands(lines: Sequence[str]) -> str:
    """Commands as they are typed."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{'' if value is None else 'yes' if value else 'no'}</td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"
