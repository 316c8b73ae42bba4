"""Names every path of one run's folder on the shared file system; touches none of them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_LONGEST = 120
"""Characters of a step's folder name; file systems stop at 255 bytes, and a job's log path holds more than this one."""


@dataclass(frozen=True)
class StepFolder:
    """What one job's folder holds."""

    root: PurePosixPath

    @property
    def script(self) -> PurePosixPath:
        """The batch script, as submitted."""
        return self.root / "job.sh"

    @property
    def environment(self) -> PurePosixPath:
        """The job's own part of the environment, mode 0600; the script sources it after the run's."""
        return self.root / "environment"

    @property
    def log(self) -> PurePosixPath:
        """Output and errors of the job, those of its restarts appended."""
        return self.root / "log"

    @property
    def container(self) -> PurePosixPath:
        """The script that starts a command in the step's container, where it has one."""
        return self.root / "container.sh"

    @property
    def state(self) -> PurePosixPath:
        """JSON: attempts and restarts, written by the supervisor."""
        return self.root / "state.json"

    @property
    def progress(self) -> PurePosixPath:
        """A decimal number that grows with each checkpoint."""
        return self.root / "progress"

    @property
    def usage(self) -> PurePosixPath:
        """Folder of one JSON file a node: CPU seconds and memory."""
        return self.root / "usage"


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run; `root` is absolute, on a file system that login and compute nodes share."""

    root: PurePosixPath

    @property
    def code(self) -> PurePosixPath:
        """The working tree as it was at submission; every job runs in it."""
        return self.root / "code"

    @property
    def commands(self) -> PurePosixPath:
        """Programs that stand for Slurm's commands in containers."""
        return self.root / "commands"

    @property
    def plan(self) -> PurePosixPath:
        """JSON: what was submitted."""
        return self.root / "plan.json"

    @property
    def jobs(self) -> PurePosixPath:
        """JSON: Slurm's job ids, there once all jobs are queued."""
        return self.root / "jobs.json"

    @property
    def environment(self) -> PurePosixPath:
        """The environment of all jobs, mode 0600: the only place that holds ZenML's token."""
        return self.root / "environment"

    @property
    def outcome(self) -> PurePosixPath:
        """JSON: how the run ended, written by the closing job."""
        return self.root / "outcome.json"

    @property
    def stopping(self) -> PurePosixPath:
        """There once somebody has asked the run to stop."""
        return self.root / "stopping"

    @property
    def steps(self) -> PurePosixPath:
        """The folders of the steps' jobs."""
        return self.root / "steps"

    def step(self, name: str) -> StepFolder:
        """The folder of ZenML's step `name`, which may hold anything: different names have different folders."""
        return StepFolder(self.steps / folder_name(name))

    @property
    def isolated_steps(self) -> PurePosixPath:
        """Folders of the isolated steps of a dynamic pipeline, each with a plan and jobs of its own."""
        return self.root / "isolated"

    def isolated(self, step_run: str) -> RunDirectory:
        """The folder of one step run of a dynamic pipeline; its code is the outer run's."""
        return RunDirectory(self.isolated_steps / folder_name(step_run))

    @property
    def closing(self) -> StepFolder:
        """The folder of the job that depends on all others and writes the end."""
        return StepFolder(self.root / "closing")

    @property
    def failure(self) -> StepFolder:
        """The folder of the job that starts as soon as any step has failed."""
        return StepFolder(self.root / "failure")


def folder_name(name: str) -> str:
    """`name` as one path component of letters, digits and `_ . - =`, at most 120 characters; injective.

    Every other byte of its UTF-8 becomes `=XX`, as do a dot or a hyphen in front (hidden files, options). Longer names keep their
    beginning and end in `=-` and a digest, which no escape looks like.
    """
    safe = re.sub(rb"^[.-]|[^A-Za-z0-9_.-]", lambda match: b"=%02X" % match.group()[0], name.encode("utf-8", "surrogatepass")).decode()
    if len(safe) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{safe[: _LONGEST - 34]}=-{digest}"
    return safe or "="
