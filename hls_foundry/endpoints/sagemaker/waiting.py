"""Waits for SageMaker: bounded, asking gently, telling the state and the seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str, float], None]
"""Called with the state and the seconds waited so far, each time it was asked for."""


@dataclass(frozen=True)
class Pace:
    """How often to ask: after `first` seconds, then ever more slowly, at last every `most` seconds. The clock can be another's."""

    first: float = 1.0
    growth: float = 1.3
    most: float = 15.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


def wait_while(ask: Callable[[], str], states: frozenset[str], *, seconds: float, pace: Pace, report: Report | None = None) -> str:
    """Ask for the state until it is none of `states`, and return it.

    Raises TimeoutError after `seconds`, with the state it has then; what `ask` raises is raised.
    """
    started, pause = pace.clock(), pace.first
    while True:
        state = ask()
        waited = pace.clock() - started
        if report:
            report(state, waited)
        if state not in states:
            return state
        if waited >= seconds:
            raise TimeoutError(state)
        pace.sleep(min(pause, max(seconds - waited, 0.01)))
        pause = min(pause * pace.growth, pace.most)
