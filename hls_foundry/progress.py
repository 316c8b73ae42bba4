"""A progress bar at a terminal, a line now and then elsewhere, nothing for what is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all."""

LINE_EVERY_S = 15.0


@contextmanager
def progress_bar(label: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """A callback that moves a bar named `label` on standard error; where that is no terminal, it writes a line every 15 s."""
    if not sys.stderr.isatty():
        yield _lines(label, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str, clock: Callable[[], float]) -> Progress:
    told = clock()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = clock()
        if now - told >= LINE_EVERY_S and done < total:
            told = now
            print(f"{label:<11} {done} of {total}", file=sys.stderr, flush=True)

    return tell
