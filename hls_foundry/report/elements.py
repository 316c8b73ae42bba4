"""The pieces of a page besides pictures: tables, large figures, facts, commands."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_ROWS = 1000


def text(value: str) -> str:
    """Text from data as HTML."""
    return html.escape(value)


def note(value: str) -> str:
    """A sentence that must not be overlooked."""
    return f'<p class="note">{html.escape(value)}</p>'


def tiles(values: Mapping[str, str]) -> str:
    """Large figures side by side: label → text."""
    items = "".join(f'<div class="tile">{html.escape(label)}<b>{html.escape(value)}</b></div>' for label, value in values.items())
    return f'<div class="tiles">{items}</div>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table from rows of equal keys, at most 1000 of them; floats with four significant digits, NaN and None as –."""
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th{_kind(value)}>{html.escape(str(name))}</th>" for name, value in rows[0].items())
    body = "".join("<tr>" + "".join(_cell(value) for value in row.values()) + "</tr>" for row in rows[:MAX_ROWS])
    more = f"<p>and {len(rows) - MAX_ROWS:,} more</p>" if len(rows) > MAX_ROWS else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def folded(summary: str, body: str) -> str:
    """Long content that opens on a click, in a frame that scrolls; `summary` is plain text."""
    return f'<details><summary>{html.escape(summary)}</summary><div class="scroll">{body}</div></details>'


def facts(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values."""
    body = "".join(f"<tr><th>{html.escape(str(name))}</th>{_cell(value, right=False)}</tr>" for name, value in values.items())
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def columns(*bodies: str) -> str:
    """HTML side by side where there is room."""
    return f'<div class="columns">{"".join(f"<div>{body}</div>" for body in bodies)}</div>'


def commands(lines: Sequence[str]) -> str:
    """Commands as they are typed."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _kind(value: Any) -> str:
    """Numbers stand on the right, with their heading."""
    return ' class="number"' if value is None or (isinstance(value, int | float) and not isinstance(value, bool)) else ""


def _cell(value: Any, *, right: bool = True) -> str:
    kind = _kind(value) if right else ""
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"<td{kind}>–</td>"
    if isinstance(value, float):
        return f"<td{kind}>{f'{value:,.0f}' if abs(value) >= 10_000 else f'{value:#.4g}' if right else f'{value:.4g}'}</td>"
    if isinstance(value, int):
        return f"<td{kind}>{value:,}</td>"
    return f"<td>{html.escape(str(value))}</td>"
