"""One HTML document of sections, which loads nothing and can be read in light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

from hls_foundry.report.picture import Picture

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #f1f3f5; --line: #d5dae0; --faint: #5b6570; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e6e9ec; --soft: #22272d; --line: #3a424b; --faint: #9aa5b1; --link: #6cb2f5; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif;
  background: var(--paper); color: var(--ink); max-width: 1120px; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } p { max-width: 52rem; overflow-wrap: anywhere; } a { color: var(--link); }
nav a { margin-right: 1rem; white-space: nowrap; } .faint { color: var(--faint); }
table { border-collapse: collapse; margin: .6rem 0; } thead th { background: var(--soft); }
th, td { text-align: left; padding: .25rem .8rem .25rem .4rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; } tbody th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; } .tile b { display: block; font-size: 1.5rem; }
figure { margin: .8rem 0; } figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
figcaption { color: var(--faint); font-size: .9rem; margin-top: .3rem; }
.wide { overflow-x: auto; } .scroll { max-height: 32rem; overflow: auto; border: 1px solid var(--line); margin: .5rem 0; }
.scroll table { margin: 0; width: 100%; } .scroll thead th { position: sticky; top: 0; } summary { cursor: pointer; color: var(--link); }
.columns { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } .columns > * { min-width: 0; }
.note { border-left: 4px solid #e69f00; background: var(--soft); padding: .5rem .9rem; }
code, pre { background: var(--soft); border-radius: .3rem; padding: .1rem .3rem; } pre { padding: .6rem .8rem; overflow-x: auto; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section:
    """One part of a page: a heading, and below it trusted HTML (text from data goes through `text` first) and pictures, in their order."""

    def __init__(self, title: str, *parts: str | Picture) -> None:
        self.title, self.parts = title, parts

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def body(self) -> str:
        return "\n".join(part.html() if isinstance(part, Picture) else part for part in self.parts)


def page(title: str, lead: str, sections: Sequence[Section], *, contents: bool = False) -> str:
    """One HTML document, with links to its sections where `contents`. `title` and `lead`: plain text. Its policy forbids every request."""
    parts = "\n".join(
        f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>\n{section.body}</section>'
        for number, section in enumerate(sections)
    )
    links = "".join(f'<a href="#s{number}">{html.escape(section.title)}</a> ' for number, section in enumerate(sections))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>\n"
        + (f"<nav>{links}</nav>\n" if contents else "")
        + f"{parts}\n</body></html>\n"
    )
