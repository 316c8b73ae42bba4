"""Follow a run on Slurm: what state its jobs are in, asked gently, and what their logs say."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import PurePosixPath

from pydantic import ValidationError

from hls_foundry.errors import ConfigError, FoundryError
from stacks.slurm.client import Slurm
from stacks.slurm.plan import Outcome, Plan, Submitted
from stacks.slurm.records import Job
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.states import JobState
from stacks.slurm.transport import Transport

CLOSING = "closing"
"""Name of the closing job's row."""
RUNNING = (JobState.RUNNING, JobState.COMPLETING)
SEAM = 64
"""Bytes of a log that are read again to see that it is still the same file."""


@dataclass(frozen=True)
class StepRow:
    """One step's job as Slurm last told, its elapsed time counted on since."""

    step: str
    job: int
    state: JobState
    reason: str
    nodes: int
    node_list: str
    elapsed_s: float
    expected_start: datetime | None
    restarts: int
    exit_code: int = 0


class Poller:
    """When to ask Slurm again: never twice within `least_s`, and the less often the longer nothing has changed.

    The wait is `share` of the time since the last change, at most `most_s`: news is late by a twentieth of what one has waited.
    """

    def __init__(self, *, least_s: float = 5, most_s: float = 30, share: float = 0.05, clock: Callable[[], float] = time.monotonic) -> None:
        self.least_s, self.most_s, self.share, self.clock = least_s, most_s, share, clock
        self._asked: float | None = None
        self._changed = clock()
        self._hinted = False

    def due(self) -> bool:
        """Whether it is time to ask."""
        if self._asked is None:
            return True
        wait = self.least_s if self._hinted else max(self.least_s, min(self.most_s, self.share * (self._asked - self._changed)))
        return self.clock() - self._asked >= wait

    def asked(self, *, changed: bool) -> None:
        """Slurm was asked just now, in vain or not; `changed`: its answer differed from the one before."""
        self._asked, self._hinted = self.clock(), False
        if changed:
            self._changed = self._asked

    def hint(self) -> None:
        """Something was seen elsewhere: ask as soon as is polite."""
        self._hinted = True


@dataclass
class _Log:
    """How far one log has been read."""

    offset: int = 0
    seam: bytes = b""
    partial: str = ""
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


@dataclass(frozen=True)
class _Place:
    """Where a step runs and writes."""

    job: int
    log: str
    after: tuple[str, ...] = ()


class Follower:
    """One run's jobs and logs. Asks Slurm in one batched query a poll; raises SlurmError where it does not answer."""

    def __init__(
        self, slurm: Slurm, transport: Transport, run: RunDirectory, plan: Plan, submitted: Submitted, poller: Poller | None = None
    ) -> None:
        self.slurm, self.transport, self.run, self.plan, self.submitted = slurm, transport, run, plan, submitted
        self.poller = poller or Poller()
        self._jobs: dict[int, Job] = {}
        self._missed: dict[int, int] = {}
        self._answered: float | None = None
        self._outcome: Outcome | None = None
        self._logs: dict[str, _Log] = {}
        names = [*(name for name in plan.steps if name in submitted.jobs), *(name for name in submitted.jobs if name not in plan.steps)]
        after = {name: step.after for name, step in plan.steps.items()}
        self._places = {name: _Place(submitted.jobs[name], str(run.step(name).log), after.get(name, ())) for name in names}
        self._isolated: set[str] = set()
        self._drained: set[str] = set()

    def rows(self) -> list[StepRow]:
        """The steps in the pipeline's order; asks Slurm where that is due. Raises SlurmError."""
        if self.poller.due() and not self.finished:
            self._ask()
        return self.last_rows()

    def last_rows(self) -> list[StepRow]:
        """The steps as Slurm last told; asks nobody."""
        return [self._row(name, place.job) for name, place in list(self._places.items())]

    def closing_row(self) -> StepRow:
        """The job that writes the end of the run."""
        return self._row(CLOSING, self.submitted.closing)

    @property
    def finished(self) -> bool:
        """Whether every job of the run, the closing one too, has ended (or is no longer known to Slurm)."""
        return all(self._ended(job) for job in self._all_jobs())

    @property
    def running_step(self) -> str | None:
        """The step that started last of those that run."""
        places = list(self._places.items())
        running = [(str(self._jobs[place.job].started), name) for name, place in places if self._state(place.job) in RUNNING]
        return max(running)[1] if running else None

    @property
    def outcome(self) -> Outcome | None:
        """What the closing job wrote; None until then."""
        if self._outcome is None:
            try:
                self._outcome = Outcome.model_validate_json(self.transport.read(str(self.run.outcome)))
            except (OSError, FoundryError, ValidationError):
                return None
        return self._outcome

    def news(self) -> list[tuple[str, str]]:
        """(step, text) for every log that has grown since last asked: those of steps that run, may have just started, or have ended."""
        found: list[tuple[str, str]] = []
        for row in self.last_rows():
            if row.step in self._drained or not (self._ended(row.job) or self._may_run(row)):
                continue
            ended = self._ended(row.job)
            if text := self.new_log(row.step):
                found.append((row.step, text))
                if row.state is JobState.PENDING:
                    self.poller.hint()
            if ended:
                self._drained.add(row.step)
        return found

    def new_log(self, step: str) -> str:
        """What was appended to the log of `step` since last asked: whole lines, and the last piece once its job has ended.

        Reads from the start again where the file was truncated or replaced. Bytes that are not UTF-8 become U+FFFD.
        """
        place, log = self._places[step], self._logs.setdefault(step, _Log())
        try:
            found = self.transport.tail(place.log, log.offset - len(log.seam))
        except FileNotFoundError:
            return ""
        if found[: len(log.seam)] != log.seam:
            log = self._logs[step] = _Log()
            found = self.transport.tail(place.log, 0)
        fresh = found[len(log.seam) :]
        log.offset += len(fresh)
        log.seam = (log.seam + fresh)[-SEAM:]
        ended = self._ended(place.job)
        text = log.partial + log.decoder.decode(fresh, ended)
        cut = len(text) if ended else text.rfind("\n") + 1
        log.partial = text[cut:]
        return text[:cut]

    def log_files(self) -> dict[str, str]:
        """Where each step's job writes (the file is there once it has started), and the closing job. Asks the folder, not Slurm."""
        if self.plan.dynamic:
            self._find_isolated()
        return {**{name: place.log for name, place in self._places.items()}, CLOSING: str(self.run.closing.log)}

    def partial_line(self, step: str) -> str:
        """The line that `step` is writing and has not ended yet, such as a progress bar."""
        return self._logs[step].partial if step in self._logs else ""

    def _ask(self) -> None:
        if self.plan.dynamic:
            self._find_isolated()
        asked = [job for job in self._all_jobs() if not self._ended(job)]
        try:
            found = self.slurm.jobs(asked)
        except FoundryError:
            self.poller.asked(changed=False)
            raise
        known = {number: job for number, job in found.items() if job.state is not JobState.UNKNOWN}
        changed = any(number not in self._jobs or _seen(self._jobs[number]) != _seen(job) for number, job in known.items())
        self._jobs.update(known)
        self._missed = {number: self._missed.get(number, 0) + 1 for number in asked if number not in known}
        self._answered = self.poller.clock()
        self.poller.asked(changed=changed)

    def _find_isolated(self) -> None:
        """The steps that a dynamic pipeline has submitted since, each with a folder of its own; a step's retry is a row of its own."""
        listed = self.transport.run(["ls", "-1", "-tr", str(self.run.isolated_steps)])
        for identity in listed.stdout.split() if listed.returncode == 0 else []:
            folder = self.run.isolated(identity)
            submitted = None if identity in self._isolated else _read_submitted(self.transport, folder)
            for name, job in submitted.jobs.items() if submitted else ():
                numbered = (f"{name} ({number})" for number in count(2))
                key = name if name not in self._places else next(other for other in numbered if other not in self._places)
                self._places[key] = _Place(job, str(folder.step(name).log))
                self._isolated.add(identity)

    def _all_jobs(self) -> list[int]:
        return list(dict.fromkeys([*(place.job for place in list(self._places.values())), *self.submitted.ids()]))

    def _ended(self, job: int) -> bool:
        return self._lost(job) or (job in self._jobs and self._jobs[job].state.finished)

    def _lost(self, job: int) -> bool:
        """Slurm answered twice and knew nothing of it: forgotten long after its end, or lost with a controller's state."""
        return self._missed.get(job, 0) >= 2

    def _state(self, job: int) -> JobState:
        return JobState.UNKNOWN if job not in self._jobs or self._lost(job) else self._jobs[job].state

    def _may_run(self, row: StepRow) -> bool:
        if row.state is not JobState.PENDING:
            return True
        before = [self._places[name].job for name in self._places[row.step].after if name in self._places]
        return all(self._state(job) is not JobState.PENDING for job in before)

    def _row(self, step: str, job: int) -> StepRow:
        if self._state(job) is JobState.UNKNOWN:
            return self._row_from_folder(step, job)
        found = self._jobs[job]
        counted = 0.0 if self._answered is None or found.state is not JobState.RUNNING else self.poller.clock() - self._answered
        elapsed = found.elapsed_s + counted
        expected = found.expected_start if found.state is JobState.PENDING else None
        place = (found.nodes, found.node_list)
        return StepRow(step, job, found.state, found.reason, *place, elapsed, expected, found.restarts, found.exit_code)

    def _row_from_folder(self, step: str, job: int) -> StepRow:
        """A job that Slurm no longer knows, or of which it has not told yet: what the closing job wrote about it."""
        told = self._outcome.steps.get(step) if self._outcome else None
        if told is None or not told.state:
            return StepRow(step, job, JobState.UNKNOWN, "", 0, "", 0, None, 0)
        return StepRow(step, job, JobState.parse(told.state), told.reason, told.nodes, "", told.elapsed_s, None, told.restarts)


def _seen(job: Job) -> tuple[JobState, str, int]:
    return job.state, job.reason, job.restarts


def open_run(transport: Transport, folder: str) -> tuple[RunDirectory, Plan, Submitted]:
    """The plan and the job ids of the run in `folder`. Raises ConfigError where they cannot be read."""
    run = RunDirectory(PurePosixPath(folder))
    try:
        plan = Plan.model_validate_json(transport.read(str(run.plan)))
    except (OSError, ValidationError) as error:
        raise ConfigError(f"run folder {folder} cannot be read ({_one_line(error)}): it was removed, or is not mounted here") from None
    submitted = _read_submitted(transport, run)
    if submitted is None:
        raise ConfigError(f"run folder {folder} has no jobs.json: its submission did not get that far; start the run again")
    return run, plan, submitted


def _read_submitted(transport: Transport, run: RunDirectory) -> Submitted | None:
    try:
        return Submitted.model_validate_json(transport.read(str(run.jobs)))
    except (OSError, ValidationError):
        return None


def _one_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
