"""Ctrl-C and SIGTERM at the command line: later, where they would break something, and never lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_S = 0.02


@contextmanager
def heeded_interrupts() -> Iterator[None]:
    """A Ctrl-C during a destructor or a weak reference's callback, where Python prints KeyboardInterrupt and drops it, is sent again."""
    before = sys.unraisablehook

    def hook(dropped: UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        later = threading.Timer(
            AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
        )  # now, it would be dropped here
        later.daemon = True
        later.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM during the body take effect at its end. Only in the main thread, where Python handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
