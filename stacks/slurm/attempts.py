"""What a step's job remembers between its starts: `state.json`, and what follows from it after a restart by Slurm.

Standard library only, Python 3.9 or newer: the supervisor reads this at the start of every job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

COMPLETED, FAILED, REQUEUED, STOPPED = "completed", "failed", "requeued", "stopped"


@dataclass
class Run:
    """One start of the step's process: which attempt, where, from when to when, what it used."""

    job: int
    restart: int
    attempt: int
    started: str
    last_seen: str
    ended: str | None = None
    exit: int | None = None
    node_list: str = ""
    nodes: int = 1
    cpus: int = 1
    progress: float | None = None
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0


@dataclass
class StepState:
    """`state.json`. `lost`: there was none, or none that can be read."""

    attempt: int = 1
    restarts: int = 0
    runs: list[Run] = field(default_factory=list)
    outcome: str | None = None
    reason: str = ""
    lost: bool = field(default=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> StepState:
        """Read `path`; a file that is missing, cut short or not a state gives a fresh state, marked as lost."""
        try:
            content = json.loads(path.read_bytes())
            known = {part.name for part in fields(Run)}
            runs = [Run(**{key: value for key, value in run.items() if key in known}) for run in content["runs"]]
            return cls(int(content["attempt"]), int(content["restarts"]), runs, content["outcome"], str(content["reason"] or ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(lost=True)

    def save(self, path: Path) -> None:
        """Write `path` in one step, for readers see either the old or the new. Raises OSError."""
        content: dict[str, Any] = asdict(self)
        del content["lost"]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def close_run_without_end(self) -> bool:
        """Where the last run's supervisor was killed: that run ended when it was last seen. Returns whether it was."""
        if not self.runs or self.runs[-1].ended is not None:
            return False
        self.runs[-1].ended = self.runs[-1].last_seen
        return True

    @property
    def reenters(self) -> bool:
        """Whether the next start goes on with an attempt that was interrupted, so that ZenML has a step run for it already."""
        return self.restarts > 0 and (self.lost or any(run.attempt == self.attempt for run in self.runs))

    def refusal(self, restart: int, max_restarts: int, max_restarts_without_progress: int) -> str | None:
        """Why the step may not run in the job's `restart`th restart by Slurm (0: its first start); None where it may."""
        if restart > max_restarts:
            return f"restarted {max_restarts} time{'' if max_restarts == 1 else 's'}, which is the limit (max_restarts)"
        idle = self._restarts_without_progress()
        if restart == 0 or idle < max(1, max_restarts_without_progress):
            return None
        progress = self.runs[-1].progress
        where = "it starts over each time" if progress is None else f"stuck at step {progress:g}"
        return f"no progress in {idle} restart{'s' if idle > 1 else ''}: {where} (max_restarts_without_progress)"

    def _restarts_without_progress(self) -> int:
        reached: dict[int, float] = {}
        for run in self.runs:
            if run.attempt == self.attempt:
                reached[run.restart] = -1.0 if run.progress is None else run.progress
        steps = list(reached.values())
        grown = [later > earlier for earlier, later in zip(steps, steps[1:])]  # noqa: B905, RUF007 (both came with Python 3.10)
        return len(grown) if True not in grown else grown[::-1].index(True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; nothing is left where writing fails (a full disk)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the failure to write is what the caller gets to know
            temporary.unlink(missing_ok=True)


def read_progress(path: Path) -> float | None:
    """The number that training left in `path` after its last checkpoint; None without one."""
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 (the name UTC came with 3.11)
