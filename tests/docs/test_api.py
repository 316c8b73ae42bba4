"""docs/api says what the code offers, and the code says it of everything public."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "write_api.py"))


@pytest.fixture(scope="module")
def pages(script: dict[str, Any]) -> dict[str, str]:
    made: dict[str, str] = script["pages"]()
    return made


def test_pages_are_those_of_the_code(pages: dict[str, str]) -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert sorted(committed) == sorted(pages), "run make docs"
    for name, text in pages.items():
        assert committed[name] == text, f"docs/api/{name}: run make docs"


def test_a_page_has_signatures_fields_methods_and_what_is_raised(pages: dict[str, str]) -> None:
    assert "def load_bundle(" in pages["models.md"]
    assert "class SpectralIndex\n    name: str" in pages["evaluation.md"]
    assert "- `def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]`\n  int16 (H, W)" in pages["evaluation.md"]
    assert "Raises SplitError where" in pages["evaluation.md"]
    assert "### POST /invocations" in pages["http.md"]
    assert "### DELETE /models/{name}" in pages["http.md"]


@pytest.mark.parametrize("package", ["hls_foundry", "stacks", "cli"])
def test_every_public_function_and_class_says_what_it_is_for(package: str, script: dict[str, Any]) -> None:
    silent = [
        f"{path.relative_to(ROOT)}: {definition.name}"
        for path in sorted(Path(ROOT / package).rglob("*.py"))
        for definition in script["public"](ast.parse(path.read_text(encoding="utf-8")))
        if not ast.get_docstring(definition)
    ]
    assert silent == []
