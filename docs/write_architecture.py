"""Draw docs/images/architecture.svg from the imports, and write the table of rooms in docs/architecture.md: neither can lag behind."""

from __future__ import annotations

import ast
import html
import re
import sys
import textwrap
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cli", "pipelines", "steps", "stacks", "hls_foundry")
FRAME = "hls_foundry"
FLOOR = "config, errors, home, progress"
"""Single modules of hls_foundry, which everything may import: drawn as the floor, without lines."""

START, END = "<!-- made by make docs -->\n", "<!-- end -->"
WIDTH, BOX_W, BOX_H, GAP_Y, MARGIN = 1000, 226, 66, 38, 16


@dataclass
class Room:
    """A box of the drawing: a package, or run.py."""

    name: str
    purpose: str
    imports: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)


def read_rooms() -> dict[str, Room]:
    """The rooms by name, with the rooms and the outside packages that their modules import."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    names = {_room(module) for module in graph.modules if module.split(".")[0] in PACKAGES} - {""}
    rooms = {name: Room(name, _purpose(name)) for name in sorted(names)}
    for module in graph.modules:
        if (here := _room(module)) not in rooms:
            continue
        for imported in graph.find_modules_directly_imported_by(module):
            there = _room(imported)
            if there in rooms:
                rooms[here].imports |= {there} - {here}
            elif imported.split(".")[0] not in (*PACKAGES, *sys.stdlib_module_names):
                rooms[here].outside.add(imported.split(".")[0])
    entry = Room("run.py", _purpose("run.py"), outside={"click"})
    for statement in ast.walk(ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and (there := _room(statement.module or "")) in rooms:
            entry.imports.add(there)
    return {"run.py": entry, **rooms}


def _room(module: str) -> str:
    """The room of a module: its package, in hls_foundry the package below; empty for the floor and for hls_foundry itself."""
    parts = module.split(".")
    if parts[0] != FRAME:
        return parts[0]
    return ".".join(parts[:2]) if len(parts) > 1 and (ROOT / FRAME / parts[1]).is_dir() else ""


def _purpose(name: str) -> str:
    file = ROOT / name if name == "run.py" else ROOT / name.replace(".", "/") / "__init__.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.split("\n")[0].rstrip(".")


def needed_lines(rooms: dict[str, Room]) -> list[tuple[str, str]]:
    """The imports that no chain of other imports says already (the transitive reduction)."""

    def reach(name: str) -> set[str]:
        return set().union(*({there} | reach(there) for there in rooms[name].imports))

    lines = []
    for name, room in rooms.items():
        for there in sorted(room.imports):
            if not any(there in reach(other) for other in room.imports - {there}):
                lines.append((name, there))
    return lines


def rows_of(rooms: dict[str, Room]) -> list[list[str]]:
    """Rows from the top, each room above all that it imports: outside the frame as high as can be, in the frame as low."""

    def below_importers(name: str) -> int:
        return 1 + max((below_importers(other) for other, room in rooms.items() if name in room.imports), default=-1)

    def above_imported(name: str) -> int:
        return 1 + max((above_imported(other) for other in rooms[name].imports), default=-1)

    outer, inner = [name for name in rooms if not name.startswith(FRAME)], [name for name in rooms if name.startswith(FRAME)]
    high = [[name for name in outer if below_importers(name) == depth] for depth in range(len(outer))]
    low = [[name for name in inner if above_imported(name) == level] for level in reversed(range(len(inner)))]
    return [row for row in (*high, *low) if row]


def drawing(rooms: dict[str, Room]) -> str:
    """The SVG: rooms in rows, importing ones above imported ones, the domain in a frame on its floor."""
    rows, lines = rows_of(rooms), needed_lines(rooms)
    place: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        above = {name: [place[a][0] for a, b in lines if b == name and a in place] for name in row}
        row.sort(key=lambda name: sum(above[name]) / len(above[name]) if above[name] else WIDTH / 2)
        step = min(WIDTH / len(row), BOX_W + 60)
        left = WIDTH / 2 - step * (len(row) - 1) / 2
        for column, name in enumerate(row):
            place[name] = (left + step * column, MARGIN + number * (BOX_H + GAP_Y) + (30 if name.startswith(FRAME) else 0))
    bottom = max(y for _, y in place.values()) + BOX_H
    top = min(y for name, (_, y) in place.items() if name.startswith(FRAME)) - 26
    parts = [
        f'<rect class="frame" x="12" y="{top:.0f}" width="{WIDTH - 24}" height="{bottom + 62 - top:.0f}" rx="10"/>',
        f'<text class="frame-name" x="28" y="{bottom + 10:.0f}">{FRAME}: the domain, knows nothing of ZenML</text>',
        f'<rect class="floor" x="28" y="{bottom + 22:.0f}" width="{WIDTH - 56}" height="28" rx="5"/>',
        f'<text x="{WIDTH / 2}" y="{bottom + 41:.0f}">{FLOOR}</text>',
        *(_line(place[a], place[b]) for a, b in lines),
        *(_box(rooms[name], *place[name]) for name in rooms),
    ]
    height = bottom + 62 + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="Which room imports which">\n<style>{_STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


_STYLE = (
    "text{font:12px system-ui,sans-serif;text-anchor:middle;fill:#24292f} .name{font-weight:700;font-size:14px} "
    ".box{fill:#eef4fb;stroke:#4a7ab5} .frame{fill:#f7f7f4;stroke:#b5b5a8} .frame-name{text-anchor:start;font-style:italic;fill:#666} "
    ".floor{fill:#e9e9e2;stroke:#b5b5a8} .line{fill:none;stroke:#7a869a;stroke-width:1.4} .head{fill:#7a869a}"
)


def _box(room: Room, x: float, y: float) -> str:
    words = textwrap.wrap(room.purpose, 34, max_lines=2, placeholder=" …")
    said = "".join(f'<text x="{x:.0f}" y="{y + 40 + 15 * i:.0f}">{html.escape(line)}</text>' for i, line in enumerate(words))
    rect = f'<rect class="box" x="{x - BOX_W / 2:.0f}" y="{y:.0f}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
    return f'{rect}<text class="name" x="{x:.0f}" y="{y + 20:.0f}">{html.escape(room.name.removeprefix(FRAME + "."))}</text>{said}'


def _line(upper: tuple[float, float], lower: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = (upper[0], upper[1] + BOX_H), lower
    bend = (y2 - y1) / 2
    curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 5:.0f}"
    head = f"M{x2 - 4:.0f} {y2 - 7:.0f}L{x2 + 4:.0f} {y2 - 7:.0f}L{x2:.0f} {y2:.0f}Z"
    return f'<path class="line" d="{curve}"/><path class="head" d="{head}"/>'


def table(rooms: dict[str, Room]) -> str:
    """A row a room: what it is for, which rooms and which outside packages it imports."""
    distributions = metadata.packages_distributions()
    out = ["| room | what for | imports | from outside |\n|---|---|---|---|\n"]
    for room in rooms.values():
        path = "run.py" if room.name == "run.py" else room.name.replace(".", "/") + "/"
        inside = ", ".join(sorted(name.removeprefix(FRAME + ".") for name in room.imports))
        # As it is installed: yaml is pyyaml.
        outside = sorted({sorted(distributions.get(package, [package]))[0].lower() for package in room.outside})
        out.append(f"| [`{path}`](../{path}) | {room.purpose} | {inside} | {', '.join(outside)} |\n")
    return "".join(out)


def page(text: str, rooms: dict[str, Room]) -> str:
    """`text` of architecture.md with the table of today."""
    return re.sub(re.escape(START) + ".*?" + re.escape(END), lambda _: START + table(rooms) + END, text, flags=re.S)


if __name__ == "__main__":
    found = read_rooms()
    (ROOT / "docs" / "images" / "architecture.svg").write_text(drawing(found), encoding="utf-8")
    file = ROOT / "docs" / "architecture.md"
    file.write_text(page(file.read_text(encoding="utf-8"), found), encoding="utf-8")
