"""The one place that runs Slurm's commands: submits, asks, cancels, and keeps trying for a while when Slurm is busy."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from hls_foundry.errors import SlurmError
from stacks.slurm.records import (
    ACCOUNTING_FORMAT,
    FIELD,
    JOBCOMP_FORMAT,
    NODE_FORMAT,
    QUEUE_FORMAT,
    RECORD,
    Association,
    Job,
    Node,
    Partition,
    read_accounting,
    read_associations,
    read_nodes,
    read_partitions,
    read_queue,
)
from stacks.slurm.refusals import refusal, script_options
from stacks.slurm.states import JobState
from stacks.slurm.transport import Completed, ConnectionLost, Transport

PATIENCE_S = 60.0
ANSWER_S = 30.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0

_BUSY = re.compile(
    r"[Ss]ocket timed out|Unable to contact slurm controller|Communication connection failure|temporarily unable"
    r"|Zero Bytes were transmitted|[Rr]esource temporarily unavailable|Message (receive|send) failure|Unexpected message received"
    r"|Slurm backup controller|in standby mode|Unable to connect to database|failed to open persistent connection"
    r"|Sending PersistInit|slurmdbd: Connection refused"
)
_NOT_SENT = re.compile(r"\(connect failure\)|temporarily unable")
"""Where sbatch says so, the controller cannot have taken the job."""
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled|accounting_storage plugin|Slurm job completion (logging|plugin)")
_GONE = re.compile(r"Invalid job id|already (completing or )?(completed|finished)|not pending|Job/step already")


class SlurmBusy(SlurmError):
    """Slurm did not answer within the patience of the client; `sent`: what was asked may have been done all the same."""

    def __init__(self, message: str, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True)
class Clock:
    """Time, sleep and chance of the retries."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random


class Slurm:
    """Slurm's commands on the transport's machine.

    Where the controller is busy or down each call tries again, with growing and jittered waits, for at most `patience_s` and `attempts`;
    every try has `answer_s` for its answer. Then, and where Slurm refuses, SlurmError says why in one line.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        patience_s: float = PATIENCE_S,
        answer_s: float = ANSWER_S,
        attempts: int = 100,
        clock: Clock | None = None,
    ) -> None:
        self.transport = transport
        self.patience_s, self.answer_s, self.attempts = patience_s, answer_s, attempts
        self.clock = clock or Clock()
        self._without: set[str] = set()  # of "sacct" and "jobcomp": what this cluster does not have

    # -- jobs

    def submit(self, script_path: str | PurePath, *, dependency: str = "", hold: bool = False, extra: Sequence[str] = ()) -> int:
        """Queue the batch script and return its job id. A dependency that cannot be met cancels the job.

        Where sbatch gets no answer, the job may be queued all the same: before sbatch runs again it is looked for by a mark that only this
        call carries (the script's one argument), and should two exist in the end, one is cancelled. `extra`: further options of sbatch.
        Raises SlurmError that names the refused value.
        """
        options = ["--parsable", *(["--dependency", dependency, "--kill-on-invalid-dep=yes"] if dependency else []), *extra]
        return _Submission(self, str(script_path), options).submit(hold)

    def jobs(self, ids: Collection[int]) -> dict[int, Job]:
        """All of `ids`, by id: from one squeue; those that it has forgotten from one sacct, or from jobcomp; else state UNKNOWN.

        Raises SlurmError where the controller does not answer, or where only an accounting that does not answer would know.
        """
        if not ids:
            return {}
        found = {job: known for job, known in self._queue("--jobs", _list(ids)).items() if job in set(ids)}
        unavailable: SlurmError | None = None
        for source in (self.accounting, self._completed):
            if missing := [job for job in ids if job not in found]:
                try:
                    # the queue has it no more: what accounting still calls running has ended without its knowing
                    found.update((job, known) for job, known in source(missing).items() if known.state.finished)
                except SlurmBusy as error:
                    unavailable = error
        missing = [job for job in ids if job not in found]
        if missing and unavailable:
            raise unavailable
        return {job: found.get(job) or Job(job, reason="no longer known to Slurm") for job in ids}

    def accounting(self, ids: Collection[int]) -> dict[int, Job]:
        """What sacct has on `ids` (those it knows), with CPU time and memory: all runs of a requeued job together.

        Empty where the cluster keeps no accounting. Raises SlurmError.
        """
        return self._sacct("sacct", ids, ["--duplicates", "-o", ACCOUNTING_FORMAT])

    def cancel(self, ids: Collection[int], *, signal: str | None = None, state: JobState | None = None, full: bool = False) -> None:
        """Cancel `ids`, or send them `signal`; only those in `state`; `full`: the batch script as well as the steps.

        Jobs that have ended are passed over. Raises SlurmError (for example where a job is another user's).
        """
        if not ids:  # scancel with a filter and without ids takes all jobs of the user
            return
        options = [
            *([f"--signal={signal}"] if signal else []),
            *([f"--state={state.value}"] if state else []),
            *(["--full"] if full else []),
        ]
        ended = self._ask(["scancel", *options, *map(str, ids)])
        lines = [line for line in ended.stderr.splitlines() if line.strip() and not _GONE.search(line)]
        if ended.returncode and lines:
            raise SlurmError(f"cannot cancel: {_plain(lines[0])}: check whose job it is with squeue")

    def requeue(self, job: int) -> None:
        """Put a job back into the queue. Raises SlurmError where it has been submitted with --no-requeue, or is not there any more."""
        self._control(["requeue", str(job)], f"cannot requeue job {job}")

    def release(self, ids: Collection[int]) -> None:
        """Release held jobs. Raises SlurmError."""
        if ids:
            self._control(["release", _list(ids)], f"cannot release {_list(ids)}")

    # -- the cluster

    def ping(self) -> bool:
        """Whether a controller is up; asked once. Raises SlurmError where there is no Slurm."""
        return bool(re.search(r" (is|are) UP", self._once(["scontrol", "ping"], self.answer_s).stdout))

    def partitions(self) -> list[Partition]:
        """The partitions that this user sees. Raises SlurmError."""
        return read_partitions(self._checked(["scontrol", "-o", "show", "partition"]))

    def nodes(self) -> list[Node]:
        """The nodes that this user sees. Raises SlurmError."""
        return read_nodes(self._checked(["sinfo", "--noheader", "--Node", "-o", NODE_FORMAT]))

    def accounts(self, user: str | None = None) -> list[Association] | None:
        """The accounts that `user` (default: the login's own) may charge; None where the cluster keeps no accounting. Raises SlurmError."""
        name = user or self._checked(["id", "-un"]).strip()
        command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", "where", f"user={name}", "format=account,partition,qos"]
        ended = self._ask(command, optional=True)
        if ended.returncode == 127 or _NO_ACCOUNTING.search(ended.stderr + ended.stdout):
            return None
        if ended.returncode:
            raise SlurmError(f"cannot list the accounts of {name}: {_plain(ended.stderr)}: ask the site")
        return read_associations(ended.stdout)

    # -- how

    def _queue(self, *selection: str) -> dict[int, Job]:
        ended = self._ask(["squeue", "--noheader", "--all", "--states=all", *selection, "-O", QUEUE_FORMAT])
        if ended.returncode and not re.search(r"Invalid job id", ended.stderr):
            raise SlurmError(f"cannot list jobs: {_plain(ended.stderr)}: try squeue by hand on {self.transport.where}")
        return read_queue(ended.stdout)

    def _completed(self, ids: Collection[int]) -> dict[int, Job]:
        return self._sacct("jobcomp", ids, ["--completion", "--duplicates", "-o", JOBCOMP_FORMAT])

    def _sacct(self, source: str, ids: Collection[int], options: Sequence[str]) -> dict[int, Job]:
        if source in self._without or not ids:
            return {}
        command = ["sacct", "--noheader", "--parsable2", f"--delimiter={FIELD}", "--jobs", _list(ids), *options]
        ended = self._ask(command, optional=True)
        if ended.returncode == 127 or _NO_ACCOUNTING.search(ended.stderr):
            self._without.add(source)  # none will appear while we run
        return read_accounting(ended.stdout) if ended.returncode == 0 else {}  # sacct crashes on some jobcomp set-ups

    def _control(self, command: Sequence[str], failure: str) -> None:
        ended = self._ask(["scontrol", *command])
        if ended.returncode:
            raise SlurmError(f"{failure}: {_plain(ended.stderr or ended.stdout)}: look at it with `squeue --job`")

    def _checked(self, command: Sequence[str]) -> str:
        ended = self._ask(command)
        if ended.returncode:
            raise SlurmError(f"{command[0]} failed on {self.transport.where}: {_plain(ended.stderr)}: try it by hand")
        return ended.stdout

    def _ask(self, command: Sequence[str], *, optional: bool = False) -> Completed:
        """Run a command that may be run twice, until Slurm answers. Raises SlurmBusy."""
        failure = SlurmBusy("never tried")
        for left in self.tries():
            try:
                return self._once(command, left, optional=optional)
            except SlurmBusy as error:
                failure = error
        raise failure

    def tries(self) -> Iterator[float]:
        """Seconds that each try has, with the waits between them."""
        begin, wait = self.clock.now(), FIRST_WAIT_S
        for _ in range(self.attempts):
            left = begin + self.patience_s - self.clock.now()
            if left <= 0:
                return
            yield min(left, self.answer_s)
            pause = wait * (0.5 + self.clock.random())  # many clients that began together must not come back together
            if self.clock.now() + pause >= begin + self.patience_s:
                return
            self.clock.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _once(self, command: Sequence[str], timeout: float, *, optional: bool = False) -> Completed:
        """Run a command once. Raises SlurmBusy where Slurm does not answer, SlurmError where there is no such command."""
        try:
            ended = self.transport.run(command, timeout=timeout)
        except (TimeoutError, ConnectionLost) as error:
            raise SlurmBusy(self._down(command[0], str(error))) from None
        if ended.returncode == 127 and not optional:
            raise SlurmError(
                f"no {command[0]} on the PATH of {self.transport.where}: go to a login node (perhaps `module load slurm`), or set login; "
                "without a cluster: run.py cluster up"
            )
        if ended.returncode and _BUSY.search(ended.stderr):
            raise SlurmBusy(self._down(command[0], _plain(ended.stderr)), sent=not _NOT_SENT.search(ended.stderr))
        return ended

    def _down(self, command: str, said: str) -> str:
        return (
            f"the Slurm cluster does not answer on {self.transport.where} ({command}: {said}; tried for up to {self.patience_s:.0f} s): "
            "wait until `scontrol ping` says UP and try again; jobs in the queue go on"
        )


class _Submission:
    """One sbatch that must not become two jobs."""

    def __init__(self, slurm: Slurm, script: str, options: Sequence[str]) -> None:
        self.slurm, self.script = slurm, script
        self.options = options
        self.mark = f"hls-{uuid.uuid4().hex[:16]}"

    def submit(self, hold: bool) -> int:
        doubtful, failure = False, SlurmBusy("never tried", sent=False)
        for left in self.slurm.tries():
            try:
                if doubtful and (queued := self._marked(left)):
                    return self._only(queued, hold)
                job = self._sbatch(left, hold=hold or doubtful)
                # the first request may have been on its way all the time, so the second job is held until the queue has been looked at
                return self._only({job: True, **self._marked(left)}, hold) if doubtful else job
            except SlurmBusy as error:
                doubtful, failure = doubtful or error.sent, error
        doubt = f"; {self.script} may have been queued all the same: look with squeue --me -O JobID,Command:500" if doubtful else ""
        raise SlurmBusy(f"{failure}{doubt}", sent=doubtful)

    def _sbatch(self, timeout: float, *, hold: bool) -> int:
        command = ["sbatch", *self.options, *(["--hold"] if hold else []), self.script, self.mark]
        ended = self.slurm._once(command, timeout)
        found = re.findall(r"^(\d+)(?:;\S*)?$", ended.stdout, re.MULTILINE)
        if ended.returncode == 0 and found:
            return int(found[-1])
        raise SlurmError(f"sbatch refuses {self.script}: {refusal(ended.stderr, self._options())}")

    def _options(self) -> dict[str, str]:
        try:
            script = self.slurm.transport.read(self.script).decode(errors="replace")
        except (OSError, SlurmError):
            return {}
        return script_options(script + "\n" + "\n".join(f"#SBATCH {option}" for option in self.options))

    def _marked(self, timeout: float) -> dict[int, bool]:
        """The jobs that this call has made, and whether each is held."""
        command = ["squeue", "--noheader", "--me", "--all", "--states=all", "-O", f"JobID:20{FIELD},Reason:64{FIELD},Command:8192{RECORD}"]
        ended = self.slurm._once(command, timeout)
        rows = [[value.strip() for value in record.split(FIELD)] for record in ended.stdout.split(RECORD) if FIELD in record]
        return {int(job): "Held" in reason for job, reason, line in rows if line.split(" ")[-1] == self.mark}

    def _only(self, queued: dict[int, bool], hold: bool) -> int:
        """One of `queued` (whether held, by id), the others cancelled."""
        keep, *others = sorted(queued, key=lambda job: (queued[job], job))  # one that may run already comes first
        self.slurm.cancel(others)
        if queued[keep] and not hold:
            self.slurm.release([keep])
        return keep


def _list(ids: Collection[int]) -> str:
    return ",".join(str(int(job)) for job in ids)


def _plain(said: str) -> str:
    """The last line that a command said, without its name."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else "it does not say why"
