"""docs/run_course.py as a module: docs/ is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "docs" / "course"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("run_course", ROOT / "docs" / "run_course.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_course"] = module
    spec.loader.exec_module(module)
    return module


run_course = _load()
