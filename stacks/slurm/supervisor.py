"""The batch process of a step's job, `python -m stacks.slurm.supervisor RUN_FOLDER STEP`: starts the step's process, and starts it again.

It tells the two kinds of "again" apart: a retry of a step that failed (ZenML's, counted as an attempt), and a restart of the job by
Slurm (time limit, preemption, node failure), which goes on with the same attempt. Standard library only: at work in 0.1 s.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacks.slurm.attempts import COMPLETED, FAILED, REQUEUED, STOPPED, Run, StepState, now, read_progress
from stacks.slurm.node_usage import allocated_cpus, read_usage
from stacks.slurm.own_job import RUNNING, UNKNOWN, OwnJob, Standing
from stacks.slurm.processes import StepProcess, hold_signals, next_signal
from stacks.slurm.verdicts import INTERRUPTED, REQUEUE, Watch, describe, judge

SUBMISSION_WAIT = "HLS_SUBMISSION_WAIT_S"
"""Environment variable: how long the client may take to queue the rest of the run's jobs, in seconds."""


@dataclass(frozen=True)
class Patience:
    """Seconds."""

    submission: float = 120
    """Until jobs.json is there."""
    heartbeat: float = 10
    """Between two notes of what runs."""
    sample: float = 5
    """Between two looks at memory, and at whether another start has taken over."""
    settle: float = 0.5
    """For Slurm's signal to arrive where the process has ended of it first."""
    term: float = 25
    """From SIGTERM to SIGKILL; Slurm's own (KillWait) is 30 s unless the site says otherwise."""
    saving: float = 300
    """From SIGTERM to SIGKILL where somebody asks the step to end, and Slurm does not end its job."""
    reserve: float = 15
    """Before the end of the job's time, to ask for the restart of a step that did not answer the warning; at most a third of it."""
    requeue: float = 600
    """For Slurm to answer a request for a restart; a controller may itself be restarting."""


def log(text: str) -> None:
    """One line an event, with its time."""
    with suppress(OSError):  # a full disk must not end the step
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {text}", flush=True)


@dataclass
class Supervisor:
    """One start of one step's job. `plan`: plan.json; `environment`: that of the batch script."""

    run: Path
    name: str
    plan: Mapping[str, Any]
    own: OwnJob
    environment: Mapping[str, str]
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        self.step: Mapping[str, Any] = self.plan["steps"][self.name]
        self.folder = self.run / self.step["folder"]
        self.nodes = self.environment.get("SLURM_JOB_NODELIST", "")
        self.watch = Watch()
        self.state = StepState()

    def supervise(self) -> int:
        """Run the step to its end, or to the end of this start of the job; returns the job's exit code."""
        self.state = StepState.load(self.folder / "state.json")
        if self.state.outcome in (COMPLETED, FAILED):
            log(f"step {self.name}: {self.state.outcome} already{f' ({self.state.reason})' if self.state.reason else ''}, nothing to do")
            return 0 if self.state.outcome == COMPLETED else 1
        self.state.restarts = self.own.restart
        killed = self.state.close_run_without_end()
        self.state.outcome, self.state.reason = None, ""
        self._save(first=True)
        # A start without an end may live on where slurmd died or the network broke: it sees that write, and gives way, in this time.
        if (killed and not self._wait(self.patience.sample + 1)) or not self._submission_complete():
            return self._stop_before_start() if self.watch.warned or self.watch.terminated else self._submission_interrupted()
        if self._stopping():
            return self._finish(STOPPED, "the run was stopped")
        if refusal := self._refusal(self.own.restart):
            return self._fail(refusal)
        return self._attempts()

    def _attempts(self) -> int:
        while True:
            code = self._attempt()
            if self.watch.superseded:
                log(f"step {self.name}: the job was started again elsewhere, this start gives way")
                return 1
            verdict = judge(code, self.watch, self._standing(code), stopping=self._stopping())
            if verdict.what == REQUEUE:
                return self._requeue()
            if verdict.what in (COMPLETED, REQUEUED, STOPPED):
                return self._finish(verdict.what, verdict.reason)
            last = verdict.what == FAILED or self.state.attempt > self.step.get("max_retries", 0)
            if last:
                return self._fail(verdict.reason, code)
            if not self._ready_for_retry(verdict.reason):
                return self._stop_before_start()

    def _attempt(self) -> int:
        """Start the step's process and see it end; returns its exit code, or minus the number of the signal."""
        self._clear_usage()
        where = f"on {self.nodes}, job {self.own.job}"
        log(f"step {self.name}: attempt {self.state.attempt}, restart {self.own.restart} {where}")
        environment = self._child_environment()  # before the run is noted: it looks at the runs there were
        cpus = allocated_cpus(self.environment)
        nodes = int(self.environment.get("SLURM_JOB_NUM_NODES", "1"))
        begun = now()
        run = Run(self.own.job, self.own.restart, self.state.attempt, begun, begun, node_list=self.nodes, nodes=nodes, cpus=cpus)
        self.state.runs.append(run)
        self._save()
        try:
            process = StepProcess(self.step["command"], environment)
        except OSError as error:
            log(f"step {self.name}: {self.step['command'][0]} cannot be started: {error.strerror}")
            run.ended, run.exit = now(), 127
            return 127
        self._see_it_end(process, run)
        # Where Slurm ends the job, everything has its SIGTERM already, and what is slow is killed, this process among it.
        process.clear(patience_s=1 if self.watch.terminated else 5)
        assert process.exit is not None
        run.ended, run.exit = now(), process.exit
        self._note_usage(process, run)
        self._save()
        log(f"step {self.name}: {describe(process.exit)}")
        return process.exit

    def _see_it_end(self, process: StepProcess, run: Run) -> None:
        beat = time.monotonic() + self.patience.heartbeat
        sample = time.monotonic() + 1
        while process.exit is None:
            times = [beat, sample, *([self.watch.kill_at] if self.watch.kill_at else [])]
            self._heed(next_signal(min(times) - time.monotonic()), process)
            process.reap()
            if time.monotonic() >= sample:
                process.sample()
                if self._superseded():
                    process.clear()
                sample = time.monotonic() + self.patience.sample
            if time.monotonic() >= beat:
                self._note_usage(process, run)
                self._save()
                beat = time.monotonic() + self.patience.heartbeat
            if self.watch.kill_at and time.monotonic() >= self.watch.kill_at and process.exit is None:
                log(f"step {self.name}: did not end when asked to, killed")
                self.watch.overdue, self.watch.kill_at = True, None
                process.clear(patience_s=0)

    def _heed(self, number: int | None, process: StepProcess | None) -> None:
        """Pass a signal on to the step's process, each kind once; a second one changes nothing."""
        if number == signal.SIGUSR1 and not self.watch.warned:
            self.watch.warned = True
            log(f"step {self.name}: SIGUSR1 from Slurm: the time is nearly up, or others need the nodes: the step saves and leaves")
            if process:
                process.send(signal.SIGUSR1)
                end = self.own.standing().end
                if end is not None and not self.watch.terminated:
                    left = end - time.time()
                    self.watch.kill_at = time.monotonic() + max(5.0, left - min(self.patience.reserve, left / 3))
        elif number in (signal.SIGTERM, signal.SIGINT) and not self.watch.terminated:
            self.watch.terminated = True
            log(f"step {self.name}: {signal.Signals(number).name}, the job is being ended")
            standing = self.own.standing()
            patience = self.patience.saving if standing.is_ == RUNNING else self.patience.term
            self.watch.kill_at = min(self.watch.kill_at or math.inf, time.monotonic() + patience)
            if process:
                if standing.is_ in (RUNNING, UNKNOWN):
                    # Slurm, ending a job, signals all its processes; a second one would hit a step that is on its way out.
                    process.send(signal.SIGTERM)
                self._note_usage(process, self.state.runs[-1])
            self._note_expected_end(standing)

    def _note_expected_end(self, standing: Standing) -> None:
        """Slurm kills what is slow to end: what this is going to be has to be written first."""
        expected = judge(INTERRUPTED, self.watch, standing, stopping=self._stopping())
        if expected.what != REQUEUE:
            self.state.outcome, self.state.reason = expected.what, expected.reason
            self._save()
            self.state.outcome, self.state.reason = None, ""

    def _superseded(self) -> bool:
        """slurmd may die without its tasks (and a node lose its network): then the job runs elsewhere by now, and both write."""
        self.watch.superseded |= StepState.load(self.folder / "state.json").restarts > self.own.restart
        return self.watch.superseded

    def _standing(self, code: int) -> Standing:
        """How Slurm sees the job once its process has ended with `code`."""
        if code == 0:
            return Standing(RUNNING)
        deadline = time.monotonic() + (0 if self.watch.terminated else self.patience.settle)
        while not self.watch.terminated and time.monotonic() < deadline:
            self._heed(next_signal(deadline - time.monotonic()), None)
        return self.own.standing()

    def _ready_for_retry(self, reason: str) -> bool:
        """Wait for the next attempt's turn; False where the job is to end first."""
        delay = self.step.get("retry_delay_s", 0) * self.step.get("retry_backoff", 1) ** (self.state.attempt - 1)
        most = self.step.get("max_retries", 0) + 1
        self.state.attempt += 1
        with suppress(OSError):  # where it stays, the limit on restarts without progress is reached later
            (self.folder / "progress").unlink()  # that of the attempt before says nothing about this one
        self._save()
        if not (self.watch.warned or self.watch.terminated):
            log(f"step {self.name}: failed ({reason}), attempt {self.state.attempt} of {most} in {delay:g} s")
        return self._wait(delay)

    def _wait(self, seconds: float) -> bool:
        """False as soon as a signal says that the job is to end."""
        deadline = time.monotonic() + seconds
        while not (self.watch.warned or self.watch.terminated):
            if time.monotonic() >= deadline:
                return True
            self._heed(next_signal(deadline - time.monotonic()), None)
        return False

    def _stop_before_start(self) -> int:
        """A signal came while nothing ran."""
        verdict = judge(INTERRUPTED, self.watch, self.own.standing(), stopping=self._stopping())
        if verdict.what == REQUEUE:
            return self._requeue()
        return self._fail(verdict.reason) if verdict.what == FAILED else self._finish(verdict.what, verdict.reason)

    def _requeue(self) -> int:
        """Have Slurm start the job again, and be ended by it."""
        if refusal := self._refusal(self.own.restart + 1):  # now rather than after another wait in the queue
            return self._fail(f"its time was up (time limit or preemption), and {refusal}" if self.watch.warned else refusal)
        self.state.outcome, self.state.reason = REQUEUED, ""
        self._save()  # before asking: Slurm ends this process at once
        end = time.monotonic() + self.patience.requeue
        if error := self._ask_for_restart(end):
            verdict = judge(INTERRUPTED, self.watch, self.own.standing(), stopping=self._stopping())
            if verdict.what in (STOPPED, REQUEUED):
                return self._finish(verdict.what, verdict.reason)
            return self._fail(verdict.reason or f"interrupted, and Slurm did not start the job again: {error}")
        log(f"step {self.name}: requeued")
        while time.monotonic() < end and next_signal(end - time.monotonic()) not in (signal.SIGTERM, signal.SIGINT):
            continue
        return INTERRUPTED

    def _ask_for_restart(self, deadline: float) -> str:
        """Why Slurm did not agree; empty where it did. A controller that does not answer is asked again."""
        pause = 1.0
        while (answer := self.own.requeue()).error:
            if not answer.transient or time.monotonic() > deadline:
                break
            log(f"step {self.name}: {answer.error}; asking again in {pause:.0f} s")
            if next_signal(pause) in (signal.SIGTERM, signal.SIGINT):
                break
            pause = min(30.0, 2 * pause)
        return answer.error

    def _finish(self, outcome: str, reason: str = "") -> int:
        self.state.outcome, self.state.reason = outcome, reason
        self._save()
        log(f"step {self.name}: {outcome}{f': {reason}' if reason else ''}")
        return {COMPLETED: 0, FAILED: 1}.get(outcome, INTERRUPTED)

    def _fail(self, reason: str, code: int = 1) -> int:
        """The step has failed; what becomes of the others is for the execution mode to say."""
        self._finish(FAILED, reason)
        mode = self.plan["execution_mode"]
        others = [job for job in self._submitted().get("jobs", {}).values() if job != self.own.job]
        if mode in ("fail_fast", "stop_on_failure") and others:
            answer = self.own.cancel(others, pending_only=mode == "stop_on_failure")
            whom = "all other steps" if mode == "fail_fast" else "the steps that have not started"
            log(f"step {self.name}: {mode}: {f'scancel failed: {answer.error}' if answer.error else f'cancelled {whom}'}")
        return code if 0 < code < 126 and code != INTERRUPTED else 1

    def _submission_complete(self) -> bool:
        """Wait for jobs.json: the client may have died in the middle of the submission, and then this job is not to run."""
        deadline = time.monotonic() + self.patience.submission
        while not (self.run / "jobs.json").exists():
            if time.monotonic() >= deadline or not self._wait(0.2):
                return False
        return True

    def _submission_interrupted(self) -> int:
        """Only this job is there to tell: run what the closing job would have run."""
        reason = f"the submission was interrupted: no jobs.json after {self.patience.submission:g} s"
        self._finish(FAILED, reason)
        try:
            process = StepProcess(self.plan["closing"]["command"], self.environment)
        except OSError as error:
            log(f"the closing command {self.plan['closing']['command'][0]} cannot be started: {error.strerror}")
            return 1
        while process.exit is None:
            self._heed(next_signal(1), process)
            process.reap()
        process.clear()
        return 1

    def _submitted(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.run / "jobs.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return content

    def _child_environment(self) -> dict[str, str]:
        own = {
            "HLS_PROGRESS_FILE": str(self.folder / "progress"),
            "HLS_USAGE_FOLDER": str(self.folder / "usage"),
            "HLS_STEP_ATTEMPT": str(self.state.attempt),
            "HLS_RUN_ID": str(self.plan["run_id"]),
            **({"HLS_STEP_REENTER": "1"} if self.state.reenters else {}),
        }
        return {**{key: value for key, value in self.environment.items() if key != "HLS_STEP_REENTER"}, **own}

    def _clear_usage(self) -> None:
        try:
            (self.folder / "usage").mkdir(parents=True, exist_ok=True)
            for path in (self.folder / "usage").glob("*.json"):  # of the run before, which has counted it
                path.unlink(missing_ok=True)
        except OSError as error:
            log(f"step {self.name}: {self.folder / 'usage'} cannot be written: {error.strerror}")

    def _note_usage(self, process: StepProcess, run: Run) -> None:
        usage = read_usage(self.folder / "usage", process.cpu_seconds, process.max_rss_bytes, self.environment.get("SLURMD_NODENAME", ""))
        run.cpu_seconds, run.max_rss_bytes = usage
        run.progress = read_progress(self.folder / "progress")
        run.last_seen = run.ended or now()

    def _refusal(self, restart: int) -> str | None:
        return self.state.refusal(restart, self.step.get("max_restarts", 10), self.step.get("max_restarts_without_progress", 3))

    def _stopping(self) -> bool:
        return (self.run / "stopping").exists()

    def _save(self, *, first: bool = False) -> None:
        """Write state.json, unless a later start of the job has taken it over; the `first` write takes it over."""
        if not first and self._superseded():
            return
        try:
            self.state.save(self.folder / "state.json")
        except OSError as error:
            log(f"step {self.name}: state.json cannot be written: {error.strerror}")


def main(arguments: list[str]) -> int:
    """Supervise the step named in the arguments; returns the exit code of its job."""
    if len(arguments) != 2:
        print("use: python -m stacks.slurm.supervisor RUN_FOLDER STEP", file=sys.stderr)
        return 2
    hold_signals()
    run, name = Path(arguments[0]).absolute(), arguments[1]
    try:
        plan = json.loads((run / "plan.json").read_bytes())
        if name not in plan["steps"]:
            raise ValueError(f"no step '{name}' in it")
        own = OwnJob(int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0))
        patience = Patience(submission=float(os.environ.get(SUBMISSION_WAIT) or Patience.submission))
        supervisor = Supervisor(run, name, plan, own, os.environ, patience)
    except (OSError, ValueError, KeyError) as error:
        what = f"{type(error).__name__}: {error}"
        print(f"step {name}: {run}/plan.json, or the environment that Slurm gives to a job, cannot be read ({what})", file=sys.stderr)
        return 2
    return supervisor.supervise()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
