"""docs/architecture.md and its drawing show the imports as they are."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "write_architecture.py"))


@pytest.fixture(scope="module")
def rooms(script: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = script["read_rooms"]()
    return found


def test_drawing_and_table_are_those_of_the_code(script: dict[str, Any], rooms: dict[str, Any]) -> None:
    drawn = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == script["drawing"](rooms), "run make docs"
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page == script["page"](page, rooms), "run make docs"


def test_every_folder_of_code_is_a_box_of_its_own(script: dict[str, Any], rooms: dict[str, Any]) -> None:
    domain = {f"hls_foundry.{path.parent.name}" for path in (ROOT / "hls_foundry").glob("*/__init__.py")}
    assert set(rooms) == {"run.py", "cli", "pipelines", "steps", "stacks", *domain}
    drawing = ElementTree.fromstring(script["drawing"](rooms))
    boxes = [tuple(float(box.attrib[key]) for key in ("x", "y")) for box in drawing.iter() if box.get("class") == "box"]
    assert len(boxes) == len(rooms)
    for x, y in boxes:
        near = [(a, b) for a, b in boxes if abs(a - x) < script["BOX_W"] and abs(b - y) < script["BOX_H"]]
        assert near == [(x, y)], "boxes do not overlap"


def test_arrows_point_down_and_none_says_what_others_say(script: dict[str, Any], rooms: dict[str, Any]) -> None:
    row_of = {name: number for number, row in enumerate(script["rows_of"](rooms)) for name in row}
    lines = script["needed_lines"](rooms)
    assert all(row_of[above] < row_of[below] for above, below in lines)
    assert ("cli", "pipelines") in lines
    assert ("cli", "steps") not in lines, "follows from cli → pipelines → steps"


def test_a_new_import_changes_both(script: dict[str, Any], rooms: dict[str, Any]) -> None:
    room = script["Room"]
    changed = {**rooms, "hls_foundry.chips": room("hls_foundry.chips", "Chips", {"hls_foundry.report"}, {"torch"})}
    assert script["table"](changed) != script["table"](rooms)
    new = {**rooms, "hls_foundry.serving": room("hls_foundry.serving", "Serving", {"hls_foundry.evaluation"}, set())}
    assert script["drawing"](new) != script["drawing"](rooms)
