"""Python's garbage collection in processes of seconds or minutes, most of which go into importing ZenML and torch."""

from __future__ import annotations

import atexit
import gc


def collect_seldom() -> None:
    """Look for garbage a few times instead of hundreds, and not at the end. Call before the imports.

    Half a million objects are looked through each time, and nearly all stay: that took a second of run.py's start and 1.4 s of its end.
    """
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
