"""Signals that ask a training to stop after the step it is in. Handlers live only as long as the training does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

PREEMPTED = 85
"""Exit code of a process that a signal stopped after it saved everything: start again to go on."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LAUNCHER_PID = "HLS_TRAINING_LAUNCHER_PID"
"""Environment variable with the process that watches over the workers of one machine; when it is gone, they stop too."""


class StopRequest:
    """Context manager; `received` is the signal's number, or 0. A second Ctrl-C interrupts at once, as without a handler."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._launcher = int(os.environ.get(LAUNCHER_PID, "0"))
        self._parent = os.getppid()

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread install handlers; elsewhere (a server's worker thread) the caller's own stay.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.received and self._launcher:
            return  # a worker that is about to end: a second signal must not cut off its report
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def check(self) -> int:
        """The signal to stop for, or 0. A worker whose launcher or agent has died counts as having got SIGTERM."""
        if not self.received and self._launcher and not (_alive(self._launcher) and os.getppid() == self._parent):
            self.received = int(signal.SIGTERM)
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT and not self._launcher:
            raise KeyboardInterrupt
        self.received = self.received or number


def _alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
