"""Server processes of local endpoints: started so that they outlive us, known by pid and start time, spoken to over a control socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import hls_foundry
from hls_foundry.endpoints.control import open_port, taken_over
from hls_foundry.errors import EndpointError

KILL_AFTER_S = 30.0


@dataclass(frozen=True)
class ServerProcess:
    """One server. `born`, the boot and clock tick of its start, tells it from a later process of the same pid."""

    pid: int
    born: str
    control: str  # name of its control socket in the endpoint's folder

    def alive(self) -> bool:
        born, ended = born_at(self.pid)
        if ended and born == self.born:
            with contextlib.suppress(ChildProcessError):  # started by an earlier run: its parent reaps it
                os.waitpid(self.pid, os.WNOHANG)
        return born == self.born and not ended

    def stop(self, seconds: float = KILL_AFTER_S) -> None:
        """Ask it to drain and end (SIGTERM); kill it after `seconds`. Nothing happens where it has ended already."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10.0)):
            if not self.alive():
                return
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return
            except PermissionError:
                raise EndpointError(f"process {self.pid} belongs to another user: stop it as that user") from None
            if self._ended_within(patience):
                return
        raise EndpointError(f"process {self.pid} does not end, not even killed: see why (ps -p {self.pid})")

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def open_port(self, folder: Path) -> None:
        """Tell it to answer on the public socket that it was started with. Raises EndpointError."""
        open_port(folder, self.control)

    def public_socket(self, folder: Path) -> socket.socket:
        """The listening socket that it answers on, shared with us. Raises EndpointError."""
        return taken_over(folder, self.control)


def start_server(
    folder: Path, control: str, public: socket.socket, check: socket.socket, log: Path, environment: Mapping[str, str]
) -> ServerProcess:
    """Start the serving application in a session of its own, with `folder` as working directory and its log in `log`.

    It answers on `check` at once and on `public` when told (`open_port`).
    """
    root = str(Path(hls_foundry.__file__).resolve().parents[1])
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SAGEMAKER_", "SM_", "HLS_MODEL_"))}
    paths = [root, *filter(None, [inherited.get("PYTHONPATH")])]
    descriptors = (public.fileno(), check.fileno())
    command = [sys.executable, "-P", "-m", "hls_foundry.serving", "serve"]
    command += [f"--public-fd={descriptors[0]}", f"--check-fd={descriptors[1]}", f"--control={control}"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            start_new_session=True,
        )
    process.returncode = 0  # so that Python does not warn of a child that is meant to outlive us
    return ServerProcess(process.pid, born_at(process.pid)[0], control)


def born_at(pid: int) -> tuple[str, bool]:
    """Boot and clock tick at which the process started, and whether it has ended (a zombie); ("", True) where there is none."""
    try:
        # /proc/PID/stat, proc(5): the name in parentheses may hold anything, so count from behind it; field 3 is the state, 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "", True
    # The first thread can be a zombie while others still hold the sockets: it is over when no other is left (field 20, threads).
    return f"{boot}:{fields[19]}", fields[0] in "ZX" and int(fields[17]) <= 1
