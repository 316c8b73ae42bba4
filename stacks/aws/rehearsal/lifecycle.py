"""Starts and stops the rehearsal of AWS, and says how a client reaches it.

    HOME/rehearsal/lock             held while it is started or stopped
    HOME/rehearsal/rehearsal.json   what runs, replaced atomically
    HOME/rehearsal/*.log            of its two processes
    HOME/rehearsal/containers/      models that its endpoints serve, unpacked

Objects, endpoints and all else live in the memory of the control plane: they last until `down`, and no longer.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from hls_foundry.errors import EndpointError
from stacks.aws.rehearsal.account import Prepared, prepare
from stacks.aws.rehearsal.credentials import KEY_ID, REGION, SECRET
from stacks.aws.rehearsal.engines import ENGINE, engine_environment, engine_with, forget_image, remove_all
from stacks.aws.rehearsal.faults import Faults
from stacks.aws.rehearsal.link import call
from stacks.aws.rehearsal.processes import end_all, listen, marked, start_module
from stacks.aws.rehearsal.record import Record, read_record, write_record
from stacks.rehearsal.processes import Process, wait_until

READY_S, LOCK_S = 30.0, 10.0
CONTROL, RUNTIME = "stacks.aws.rehearsal.control_plane", "stacks.aws.rehearsal.runtime"
Say = Callable[[str], None]


class Rehearsal:
    """The rehearsal of one home folder. `say` gets one line an event; `threads`: of each container's predictions (none: its own choice)."""

    def __init__(self, home: Path, say: Say = lambda line: None, *, threads: int | None = None) -> None:
        self.home = home.resolve() / "rehearsal"
        self.say = say
        self._threads = threads
        self._prepared: tuple[Process | None, Prepared] | None = None

    @property
    def record(self) -> Record | None:
        """What is on file, also of a rehearsal that is gone. Raises EndpointError where the file is damaged."""
        return read_record(self.home)

    @property
    def running(self) -> bool:
        """Whether both of its processes live."""
        found = self.record
        return found is not None and found.complete and _alive(found.control) and _alive(found.runtime)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to work with the rehearsal instead of AWS. Raises EndpointError where it is not up."""
        record = self._current()
        return {
            "AWS_ENDPOINT_URL": record.control_url,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": record.runtime_url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY", "")])),
        }

    def environment_in(self, environment: Mapping[str, str]) -> dict[str, str]:
        """`environment` for the rehearsal: without the AWS_… variables that it holds (a profile, a session token), with ours."""
        return {**{name: value for name, value in environment.items() if not name.startswith("AWS_")}, **self.environment}

    @property
    def faults(self) -> Faults:
        """What can be made to go wrong."""
        return Faults(self._current().runtime_url)

    def endpoints(self) -> dict[str, dict[str, str]]:
        """The endpoints of the rehearsal's own region, by name: status, reason, config, pending. Raises EndpointError."""
        return dict(call(self._current().runtime_url, f"states/{REGION}"))

    # -- start and stop

    def up(self, image: str | None = None) -> None:
        """Start it and return when it answers; one that is up already stays as it is. Raises EndpointError (one line).

        `image`: of docker or podman on this machine; endpoints are then containers of it, otherwise processes of this environment.

        A runtime that has died alone is started again, with its endpoints. What is left of a rehearsal that is gone otherwise is removed
        first; a start that fails or is interrupted leaves nothing.
        """
        if importlib.util.find_spec("moto") is None:
            raise EndpointError("the rehearsal needs moto, which is not installed: pip install 'moto[s3,server]' (or: make install)")
        engine = engine_with(image) if image else ""
        with self._locked():
            found = self._readable()
            if found and found.complete and _alive(found.control):
                if engine and not found.engine:
                    raise EndpointError("the rehearsal is up, with processes: python run.py rehearsal down, then up --containers")
                if not _alive(found.runtime):
                    self._restart_runtime(found)
                self.say(f"the rehearsal is up already, since {found.started}")
                return
            if self._remove():
                self.say("removed what was left of a rehearsal that is gone, with its buckets and endpoints")
            try:
                record = self._start(engine)
            except BaseException:
                self._remove(keep_logs=True)
                raise
        by = f", endpoints as containers by {engine}" if engine else ""
        self.say(f"the rehearsal is up: S3 and SageMaker at {record.control_url}, invocations at {record.runtime_url}{by}")

    def down(self) -> None:
        """Stop it with all its endpoints, and forget its buckets; safe to repeat."""
        with self._locked():
            self.say("the rehearsal is down" if self._remove() else "no rehearsal is up")

    def prepare(self) -> Prepared:
        """Make what an account has before its first deployment: a bucket, a role that SageMaker may take, an image in ECR; idempotent.

        Raises EndpointError where the rehearsal is not up.
        """
        record = self._current()
        if self._prepared is None or self._prepared[0] != record.control:
            self._prepared = (record.control, prepare(record.control_url))
        return self._prepared[1]

    # -- parts of a start

    def _start(self, engine: str) -> Record:
        with listen() as control, listen() as runtime:
            ports = (control.getsockname()[1], runtime.getsockname()[1])
            record = Record(datetime.now(UTC).isoformat(timespec="seconds"), *ports, engine=engine)
            write_record(self.home, record)
            record = replace(record, control=start_module(CONTROL, control, self.home, {"HLS_REHEARSAL_RUNTIME": record.runtime_url}))
            write_record(self.home, record)
            record = self._start_runtime(record, runtime)
        self._wait("control_plane", record.control_url, record.control)
        self._wait("runtime", record.runtime_url, record.runtime)
        record = replace(record, complete=True)
        write_record(self.home, record)
        return record

    def _start_runtime(self, record: Record, listening: socket.socket) -> Record:
        threads = {} if self._threads is None else {"OMP_NUM_THREADS": str(self._threads)}
        containers = {ENGINE: record.engine, **engine_environment()} if record.engine else {}
        settings = {"HLS_REHEARSAL_CONTROL": record.control_url, **threads, **containers}
        record = replace(record, runtime=start_module(RUNTIME, listening, self.home, settings))
        write_record(self.home, record)
        return record

    def _restart_runtime(self, record: Record) -> None:
        """Start the runtime on its port; the control plane tells it what to run. Its containers of before are ended first."""
        end_all(self.home, but=record.control)
        if record.engine:
            remove_all(record.engine, self.home)
        shutil.rmtree(self.home / "containers", ignore_errors=True)
        with listen(record.runtime_port) as listening:
            record = self._start_runtime(record, listening)
        self._wait("runtime", record.runtime_url, record.runtime)
        self.say("the rehearsal's runtime had ended: started again, with its endpoints")

    def _wait(self, name: str, url: str, process: Process | None) -> None:
        deadline = time.monotonic() + READY_S
        while _alive(process):
            with suppress(EndpointError):  # not yet
                call(url, "ready", timeout=1.0)
                return
            if time.monotonic() > deadline:
                raise EndpointError(f"the rehearsal's {name} is not ready after {READY_S:g} s: see {self.home}/{name}.log")
            time.sleep(0.02)
        raise EndpointError(f"the rehearsal's {name} did not start: {self._last_line(name)} (log: {self.home}/{name}.log)")

    def _last_line(self, name: str) -> str:
        lines = (self.home / f"{name}.log").read_text(errors="replace").splitlines()
        return (lines or ["its log is empty"])[-1][:300]

    # -- parts of a stop

    def _remove(self, *, keep_logs: bool = False) -> bool:
        """End every process and remove every file; whether there were any."""
        there = end_all(self.home) > 0 or (self.home / "rehearsal.json").exists()
        if (found := self._readable()) and found.engine:
            remove_all(found.engine, self.home)
            forget_image(found.engine)
        shutil.rmtree(self.home / "containers", ignore_errors=True)
        for path in [*self.home.glob("*rehearsal.json*"), *([] if keep_logs else self.home.glob("*.log"))]:
            path.unlink(missing_ok=True)
        return there

    # -- what is on file

    def _readable(self) -> Record | None:
        with suppress(EndpointError):  # a damaged one is one to be removed
            return self.record
        return None

    def _current(self) -> Record:
        found = self.record
        if found is None or not found.complete or not _alive(found.control):
            raise EndpointError("no rehearsal of AWS is up: python run.py rehearsal up starts one")
        return found

    @property
    def processes(self) -> list[Process]:
        """Everything that runs for it: control plane, runtime, containers."""
        return marked(self.home)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held by one change of this home's rehearsal at a time, over all processes. Raises EndpointError where it is taken."""
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.home / "lock").open("w")
        except OSError as error:
            raise EndpointError(f"{self.home} cannot be written ({error.strerror}): set HLS_FOUNDRY_HOME to a folder that can") from None
        with lock:
            if not wait_until(lambda: _takes(lock), LOCK_S):
                raise EndpointError(f"another rehearsal up or down is at work in {self.home}: wait for its end")
            yield


def _alive(process: Process | None) -> bool:
    return process is not None and process.alive


def _takes(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
