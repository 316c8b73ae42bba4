"""What the workers of one node used, for a job's accounting where Slurm keeps none: `HLS_USAGE_FOLDER/NODE.….json`."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from hls_foundry.errors import FoundryError
from hls_foundry.training.atomic import write_atomically


class UsageMeter:
    """Context manager over this process and its descendants: {"host", "cpu_seconds", "max_rss_bytes", "elapsed_s"}.

    `max_rss_bytes` is the largest sum of their resident memory seen, a sample a second. The file is written as it goes, so that
    a node agent that is killed has left one.
    """

    def __init__(self, path: Path | None, host: str, *, sample_s: float = 1.0, write_s: float = 5.0) -> None:
        self.path, self.host, self.sample_s, self.write_s = path, host, sample_s, write_s
        self._started = time.monotonic()
        self._cpu = 0.0
        self._rss = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="usage")

    def __enter__(self) -> UsageMeter:
        if self.path:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.path:
            self._over.set()
            self._thread.join()
            self._sample()
            self._write()

    def _watch(self) -> None:
        written = 0.0
        while not self._over.wait(self.sample_s):
            self._sample()
            if time.monotonic() - written >= self.write_s:
                self._write()
                written = time.monotonic()

    def _sample(self) -> None:
        cpu, rss = 0.0, 0
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
                rss += process.memory_info().rss
            except psutil.Error:
                continue  # it has ended meanwhile; its parent's children's times have it
            cpu += times.user + times.system + times.children_user + times.children_system
        self._cpu = max(self._cpu, cpu)
        self._rss = max(self._rss, rss)

    def _write(self) -> None:
        assert self.path is not None
        usage = {
            "host": self.host, "cpu_seconds": round(self._cpu, 3), "max_rss_bytes": self._rss,
            "elapsed_s": round(time.monotonic() - self._started, 3),
        }  # fmt: skip
        try:
            write_atomically(self.path, json.dumps(usage).encode())
        except FoundryError as error:
            # Accounting is no reason to end a training.
            print(f"usage of {self.host} is not recorded: {error}", flush=True)
            self.path = None
            self._over.set()
