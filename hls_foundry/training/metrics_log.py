"""What a training tells while it runs: metrics.jsonl, a progress bar at a terminal, and now and then a log line elsewhere."""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hls_foundry.training.atomic import write_atomically
from hls_foundry.training.request import json_line

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
PROGRESS_FILE = "HLS_PROGRESS_FILE"
"""Environment variable with the file in which who watches over restarts finds the last saved step, a decimal number."""


def tell_progress(step: int) -> None:
    """Write `step`, the optimiser steps whose outcome is now on disk, for whoever asked by HLS_PROGRESS_FILE."""
    if path := os.environ.get(PROGRESS_FILE):
        write_atomically(Path(path), str(step).encode())


class MetricsLog:
    """Context manager over `folder`/metrics.jsonl; on any process but the first (`writes` false) it only remembers.

    `history`: the records that a checkpoint brought; the file is rewritten to hold exactly those, so that a resumed training
    has no step twice. A training record: {"kind": "train", "step", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_s"}; a
    validation record: {"kind": "validation", "step", "epoch", "miou", "iou", …, "loss", "seconds"}.
    """

    def __init__(self, folder: Path, total_steps: int, history: list[dict[str, Any]], *, writes: bool, progress: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.history = history
        self.rates: list[float] = []
        self._total = total_steps
        self._writes = writes
        self._progress = progress and writes
        self._stack = ExitStack()
        self._file: IO[str] | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._validation = ""
        self._logged = time.monotonic()
        self._clock = 0.0

    def __enter__(self) -> MetricsLog:
        if self._writes:
            write_atomically(self.path, "".join(json_line(record) + "\n" for record in self.history).encode())
            self._file = self._stack.enter_context(self.path.open("a", encoding="utf-8"))
        done = max((record["step"] for record in self.history), default=0)
        if done:
            self._say("resumed from step %d of %d", done, self._total)
        if self._progress and sys.stderr.isatty():
            now = TextColumn("{task.fields[now]}")
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), now, TimeRemainingColumn()
            self._bar = self._stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
            self._task = self._bar.add_task("fine-tuning", total=self._total, completed=done, now="")
        self.restart_clock()
        return self

    def restart_clock(self) -> None:
        """A step begins now: what validations and checkpoints took is not its own."""
        self._clock = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def train(self, record: dict[str, Any]) -> None:
        """A step's record; its "samples" become "samples_per_s" by the time since the last step, its data included."""
        rate = record.pop("samples") / (time.perf_counter() - self._clock)
        self.rates.append(rate)
        self._write({"kind": "train", **record, "samples_per_s": round(rate, 3)})
        now = f"loss {record['loss']:.4f} · {self.samples_per_s():.1f} samples/s{self._validation}"
        if self._bar:
            self._bar.update(self._task, completed=record["step"], now=now)
        elif self._progress and time.monotonic() - self._logged >= LOG_EVERY_S:
            self._say("step %d of %d: %s", record["step"], self._total, now)

    def validation(self, record: dict[str, Any], better: bool) -> None:
        """Log a validation: `record` has step, miou (0–1 or None), loss and seconds; `better`: the best so far."""
        self._write({"kind": "validation", **record})
        miou = record["miou"] if record["miou"] is not None else float("nan")
        self._validation = f" · mean IoU {miou:.4f}"
        text = "step %d of %d: validation mean IoU %.4f%s, loss %.4f (%.1f s)"
        self._say(text, record["step"], self._total, miou, " (best)" if better else "", record["loss"], record["seconds"])

    def samples_per_s(self, last: int = 20) -> float:
        """Median over the last steps of this run."""
        return statistics.median(self.rates[-last:]) if self.rates else 0.0

    def _write(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        if self._file:
            self._file.write(json_line(record) + "\n")
            self._file.flush()

    def _say(self, text: str, *values: Any) -> None:
        if self._progress:
            log.info(text, *values)
            self._logged = time.monotonic()
