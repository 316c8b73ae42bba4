"""One small job on a compute node for `run.py doctor`: does the node see the shared folder, our packages and ZenML's store?

Where steps run in a container, the job looks around from inside one.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stacks.slurm import probe_job
from stacks.slurm.client import Clock, Slurm
from stacks.slurm.container import Container, render_container_script
from stacks.slurm.findings import Finding
from stacks.slurm.image import Image
from stacks.slurm.probe_job import read_answer
from stacks.slurm.reasons import explain
from stacks.slurm.records import Job
from stacks.slurm.run_directory import StepFolder
from stacks.slurm.script import JobScript, Resources, asks_for_gpus, render_job_script
from stacks.slurm.settings import SlurmSettings
from stacks.slurm.states import JobState
from stacks.slurm.store import MOVE

PATIENCE_S, RUNNING_S = 120.0, 120.0
"""How long the job may wait, then run."""

LATENCY_S, LATENCY_FAILED_S = 10.0, 2.0
"""How long a file that the job wrote may take to show on this machine; after a failed job it is the log."""

LEAST_FREE_GIB = 2
MINUTES = "10"
SHARED = "set HLS_FOUNDRY_HOME to a folder on a file system that login and compute nodes share"
INTERNET = ("huggingface.co", 443)
IN_EVERY_IMAGE = ("accelerate", "hls-foundry", "rasterio", "torch", "zenml")
"""Of the packages of requirements.lock those that a step cannot do without; others may be for development."""


@dataclass(frozen=True)
class Expectation:
    """What the node should have: the interpreter's packages by name, the store's URL (sqlite:///PATH or http…), HLS Foundry's home."""

    packages: Mapping[str, str]
    store: str
    home: str
    python: str
    internet: tuple[str, int] = INTERNET


@dataclass
class Probe:
    """The probe job in a folder of its own below `folder`, with one step's settings; the folder is removed afterwards.

    `image`: that of the container which the settings name, if they do. `patience_s`: how long it may stay pending before it is cancelled.
    """

    slurm: Slurm
    folder: str
    settings: SlurmSettings
    resources: Resources
    expected: Expectation
    image: Image | None = None
    patience_s: float = PATIENCE_S
    poll_s: float = 1.0
    say: Callable[[str], None] = lambda line: None
    clock: Clock = field(default_factory=Clock)

    def run(self) -> list[Finding]:
        """Submit it, wait for it, and compare its answer. Raises SlurmError where it cannot be submitted or asked for."""
        nonce = secrets.token_hex(8)
        step = StepFolder(PurePosixPath(self.folder) / f"probe-{nonce}")
        transport = self.slurm.transport
        with self._held_lock() as database:
            try:
                self._write(step, nonce, database)
                job = self.slurm.submit(step.script)
                self.say(f"probe job {job} submitted, waiting for up to {self.patience_s:.0f} s")
                try:
                    ended, why = self._wait(job)
                finally:
                    self.slurm.cancel([job])
                if why:
                    return [Finding("probe job", False, f"job {job} {why}", "choose a partition with free nodes, or try again later")]
                answer = self._answer(step, LATENCY_S if ended.state.ok else LATENCY_FAILED_S)
                log = "" if answer else self._log(step)
            finally:
                transport.remove(step.root)
        if answer is None:
            return [self._silent(ended, log)]
        return list(self._findings(ended, answer, nonce, bool(database)))

    def _write(self, step: StepFolder, nonce: str, database: str) -> None:
        ask = {
            "nonce": nonce,
            "packages": sorted(self.expected.packages),
            "store": self.expected.store,
            "lock": database,
            "home": self.expected.home,
            "internet": self.expected.internet,
        }
        program = step.root / "probe_job.py"
        chosen = self.settings.model_dump(exclude_unset=True, exclude={"nodes", "time", "mail_user", "mail_type"})
        script = JobScript(
            name="hls-doctor",
            settings=SlurmSettings(**chosen, time=MINUTES),
            resources=Resources(cpus=1, gpus=self.resources.gpus, memory_mib=min(512, self.resources.memory_mib or 512)),
            step=step,
            code=step.root,
            environment_files=(),
            command=(*self._python(step), str(program), str(step.root)),
            requeue=False,
            signal=False,
        )
        self.slurm.transport.write(step.root / "ask.json", json.dumps(ask).encode())
        self.slurm.transport.write(program, Path(probe_job.__file__).read_bytes())
        self.slurm.transport.write(step.script, render_job_script(script).encode())

    def _python(self, step: StepFolder) -> tuple[str, ...]:
        """What the job runs its program with: the interpreter of the host, or that of the image in its container."""
        settings = self.settings.container
        if not settings.active:
            return (self.expected.python,)
        store = self.expected.store
        places = (self.expected.home, str(Path(store.removeprefix("sqlite:///")).parent) if store.startswith("sqlite:") else "")
        image = self.image or Image("")
        container = Container(
            settings=settings,
            folder=step.root,
            code=step.root,
            commands=step.root,
            places=tuple(filter(None, places)),
            variables=tuple(self.settings.environment),
            gpus=asks_for_gpus(self.settings, self.resources),
            digest=image.digest,
            size=image.size,
        )
        self.slurm.transport.write(step.container, render_container_script(container).encode(), mode=0o700)
        return (str(step.container), settings.python)

    def _wait(self, job: int) -> tuple[Job, str]:
        """The job once it has ended, or why it was given up."""
        begin = self.clock.now()
        started: float | None = None
        while True:
            found = self.slurm.jobs([job])[job]
            now = self.clock.now()
            if found.state.finished:
                return found, ""
            if found.state is JobState.PENDING:
                if now - begin > self.patience_s:
                    reason = explain(found.reason) or "no reason given"
                    return found, f"stayed in the queue for {self.patience_s:.0f} s and was cancelled: {reason}"
            else:
                started = now if started is None else started
                if now - started > RUNNING_S:
                    return found, f"ran for {RUNNING_S:.0f} s on {found.node_list} without an end and was cancelled"
            self.clock.sleep(self.poll_s)

    def _answer(self, step: StepFolder, patience_s: float) -> dict[str, Any] | None:
        begin = self.clock.now()
        while True:
            with suppress(FileNotFoundError):
                return read_answer(self.slurm.transport.read(step.root / "answer.json"))
            if self.clock.now() - begin > patience_s:
                return None
            self.clock.sleep(self.poll_s)

    def _log(self, step: StepFolder) -> str:
        lines = self.slurm.transport.tail(step.log, 0).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _silent(self, job: Job, log: str) -> Finding:
        """The job ended, and left no answer."""
        if log:
            remedy = f"mend modules, setup or {'container' if self.settings.container.active else 'python'} of the site's file"
            return Finding("probe job", False, f"failed on {job.node_list}: {log[:240]}", remedy)
        how = f"{job.state.value}, {explain(job.reason, finished=True)}".rstrip(", ")
        return Finding("shared folder", False, f"{job.node_list or 'the node'} left nothing in {self.folder} ({how})", SHARED)

    def _findings(self, job: Job, answer: dict[str, Any], nonce: str, locked: bool) -> Iterator[Finding]:
        node = f"{answer['node']} (job {job.id})"
        yield Finding("shared folder", answer["nonce"] == nonce, f"{self.folder} is seen by {node}", SHARED)
        if answer["home"]:
            yield Finding("node home", False, f"{self.expected.home} on {answer['node']}: {answer['home']}", SHARED)
        contained = self.settings.container.active
        needed = {name: version for name, version in self.expected.packages.items()
                  if not contained or answer["packages"][name] or name in IN_EVERY_IMAGE}  # fmt: skip
        wrong = [f"{name} {answer['packages'][name] or 'missing'}" for name, version in needed.items()
                 if (answer["packages"][name] or "").split("+")[0] != version]  # fmt: skip
        told = f"{len(wrong)} differ from requirements.lock ({', '.join(wrong[:3])})" if wrong else "packages as in requirements.lock"
        remedy = "make install on the shared file system, and 'modules' of the site's file as at its installation"
        if contained:
            remedy = "make images from this checkout, and put the image of that where container.image says"
            seen = f"{self.settings.container.runtime} runs {self.settings.container.image} on {answer['node']}"
            yield Finding("node container", True, seen)
        yield Finding("node python", not wrong, f"{answer['executable']} {answer['python']}, {told}", remedy)
        remedy = "compute nodes must see the SQLite file or reach the server: " + MOVE
        yield Finding("node store", not answer["store"], answer["store"][:160] or "ZenML's store is reached from the node", remedy)
        if locked and not answer["store"]:
            held = answer["lock"] == "refused"
            found = (
                "hold between this machine and the node" if held else f"do not hold between this machine and the node ({answer['lock']})"
            )
            yield Finding("node locks", held, found, MOVE)
        sizes = {place: size / 2**30 for place, size in answer["free"].items()}
        told = ", ".join(f"{'run folders' if place.startswith(self.folder) else place} {size:.0f} GiB" for place, size in sizes.items())
        yield Finding(
            "node disk", min(sizes.values()) >= LEAST_FREE_GIB, f"free: {told}", f"at least {LEAST_FREE_GIB} GiB are needed: free some"
        )
        reached = (
            "reaches the internet"
            if answer["internet"]
            else "has no way to the internet, which is the rule: run.py fetch brings what it needs"
        )
        yield Finding("node internet", True, f"{answer['node']} {reached}")

    @contextmanager
    def _held_lock(self) -> Iterator[str]:
        """Hold an exclusive lock beside a SQLite store while the job runs; its database's path, "" where the store is a server."""
        file = Path(self.expected.store.removeprefix("sqlite:///"))
        if not self.expected.store.startswith("sqlite:") or not file.parent.is_dir():
            yield ""
            return
        with tempfile.TemporaryDirectory(prefix=".hls-lock-", dir=file.parent) as scratch:
            database = str(Path(scratch) / "lock.db")
            with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
                connection.execute("CREATE TABLE held (one INTEGER)")
                connection.execute("BEGIN EXCLUSIVE")
                yield database
