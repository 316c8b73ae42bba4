"""Asking again: back-off with jitter, bounded in number and in time, for calls that a later attempt may answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hls_foundry.errors import EndpointError

T = TypeVar("T")
UNCOUNTED = 10_000  # attempts where only the time counts


@dataclass(frozen=True)
class Patience:
    """How often and how long to ask: `attempts` in all, pauses of `first_s` doubling up to `most_s`, and `total_s` after which no new
    attempt begins. `sleep`, `clock` and `chance` (0–1) are the edge.
    """

    attempts: int = 6
    first_s: float = 0.25
    most_s: float = 8.0
    total_s: float = 180.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def pauses_after(self, attempt: int) -> float:
        """Seconds to wait after attempt 1, 2, …: between half and all of the doubling pause, so that clients do not come back together."""
        most = min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return most * (0.5 + 0.5 * self.chance())


@dataclass(frozen=True)
class Again(Generic[T]):
    """An answer that a later attempt may better: `last` is returned, or `reason` raised, when patience ends.

    `attempts`: another bound than the patience's own.
    """

    reason: str
    last: T | None = None
    attempts: int | None = None


def patiently(send: Callable[[], T | Again[T]], patience: Patience) -> T:
    """Call `send` until it returns something else than Again. Raises EndpointError, one line, when patience ends."""
    started = patience.clock()
    attempt = 0
    while True:
        attempt += 1
        answer = send()
        if not isinstance(answer, Again):
            return answer
        pause = patience.pauses_after(attempt)
        spent = patience.clock() - started
        if attempt >= (answer.attempts or patience.attempts) or spent + pause > patience.total_s:
            if answer.last is not None:
                return answer.last
            raise EndpointError(f"{answer.reason} (asked {attempt} times in {spent:.0f} s)")
        patience.sleep(pause)
