"""The rehearsal's processes: started so that they outlive run.py, marked so that none of them is ever lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hls_foundry.errors import EndpointError
from hls_foundry.home import REPOSITORY
from stacks.rehearsal.processes import Process, end, environment_of, processes_where

MARK = "HLS_REHEARSAL_OF"
"""In the environment of each of its processes, the containers too: the folder of the rehearsal."""

ROUNDS = 5


def module_environment(folder: Path) -> dict[str, str]:
    """What a Python process of the rehearsal in `folder` starts with: nothing of the user's but the search path, HOME and the language."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", MARK: str(folder)}


def listen(port: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1; `port` 0: a free one. Raises EndpointError where the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(512)
    except OSError as error:
        listening.close()
        raise EndpointError(f"port {port} of the rehearsal cannot be used ({error.strerror}): run.py rehearsal down, then up") from None
    return listening


def start_module(module: str, listening: socket.socket, folder: Path, environment: Mapping[str, str]) -> Process:
    """Start `python -m MODULE FD FOLDER` in a session of its own; it inherits `listening`. Its log is FOLDER/MODULE's last name.log."""
    command = [sys.executable, "-P", "-m", module, str(listening.fileno()), str(folder)]
    with (folder / f"{module.rpartition('.')[2]}.log").open("ab") as log:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env={**module_environment(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(listening.fileno(),),
            start_new_session=True,
        )
    started.returncode = 0  # so that Python does not warn of a child that is meant to outlive us
    process = Process.of(started.pid)
    if process is None:
        raise EndpointError(f"{module} ended at once: see {folder}/{module.rpartition('.')[2]}.log")
    return process


def marked(folder: Path) -> list[Process]:
    """All living processes of the rehearsal in `folder`, by their mark."""
    mark = f"{MARK}={folder}".encode()
    return processes_where(lambda pid, _: mark in environment_of(pid))


def end_all(folder: Path, *, but: Process | None = None, patience_s: float = 1.5) -> int:
    """End every process of the rehearsal in `folder`, except `but`; returns how many there were. Raises EndpointError where one stays."""
    count = 0
    for _ in range(ROUNDS):  # the runtime may have been about to start one
        living = [process for process in marked(folder) if process != but]
        if not living:
            return count
        count += len(living)
        end(living, patience_s)
        for process in living:
            with suppress(ChildProcessError):  # where we started it ourselves, nobody else reaps it
                os.waitpid(process.pid, os.WNOHANG)
    if stays := [process.pid for process in marked(folder) if process != but]:
        raise EndpointError(f"processes {stays} of the rehearsal do not end, not even killed: see why (ps -p {stays[0]})")
    return count
