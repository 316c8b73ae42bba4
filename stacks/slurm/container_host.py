"""The host's side of a container: `python -m stacks.slurm.container_host FOLDER -- PYTHON -m MODULE …` runs FOLDER/container.sh with it.

Slurm's commands are on the host, and the processes that need them (a step's srun, a closing job's squeue) in the container: they ask
here, over a socket, and their own standard input and outputs come along. Signals go to the process inside itself, since not every
runtime passes them on. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import array
import fnmatch
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

PASSED = (
    "SLURM_*", "SLURMD_*", "SRUN_*", "HLS_*", "ZENML_*", "OMP_*", "MKL_*", "OPENBLAS_*", "KMP_*", "CUDA_*", "NVIDIA_*", "NCCL_*", "GLOO_*",
    "TORCH_*", "PYTORCH_*", "ACCELERATE_*", "ROCR_*", "HIP_*", "GPU_DEVICE_ORDINAL", "UCX_*", "FI_*", "HF_*", "AWS_*", "LANG", "LC_*", "TZ",
    "TERM", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
"""Names of the variables that go into a container, and those that come out of it with a command for Slurm."""
COMMANDS = ("srun", "scontrol", "scancel", "squeue", "sacct", "sacctmgr", "sinfo", "sbatch")
HOST = "HLS_INSIDE_SOCKET"
"""Environment variable with the name of the socket."""
PYTHON = "HLS_HOST_PYTHON"
"""Environment variable with the host's Python."""
TASK = "HLS_TASK_COMMAND"
"""Environment variable with the words that start each task of srun in the container."""
STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_CREDENTIALS = 12  # struct ucred: pid, uid, gid


class ContainerHost:
    """Answers one container's requests; `pid` is the process inside, once it has said so."""

    def __init__(self, name: str) -> None:
        self.name, self.pid = name, 0
        self._waiting: list[int] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(f"\0{name}")  # in no file system: gone with this process, whatever becomes of it
        self._socket.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, number: int) -> None:
        """Signal the process inside; as soon as it is there."""
        self._waiting.append(number)
        self._deliver()

    def _deliver(self) -> None:
        """Called by two threads: whoever comes second finds what the first could not send."""
        while self.pid and self._waiting:
            with suppress(ProcessLookupError, IndexError):
                os.kill(self.pid, self._waiting.pop(0))

    def end(self) -> None:
        """End the commands that nobody waits for any more."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            credentials = array.array("i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS))
            if credentials[1] != os.getuid():
                connection.close()
                continue
            threading.Thread(target=self._answer, args=(connection, credentials[0]), daemon=True).start()

    def _answer(self, connection: socket.socket, pid: int) -> None:
        with connection:
            try:
                message, files = receive(connection)
            except (OSError, ValueError, EOFError):
                return
            if message.get("here"):
                self.pid = pid
                self._deliver()
                return
            try:
                code = self._run(message, files, connection)
            finally:
                for file in files:
                    os.close(file)
            with suppress(OSError):  # who asked may have gone
                connection.sendall(json.dumps(code).encode())
                connection.shutdown(socket.SHUT_RDWR)  # closing alone would leave it open for _hand_on, which reads from it

    def _run(self, message: Mapping[str, Any], files: list[int], connection: socket.socket) -> int:
        words = [str(word) for word in message["command"]]
        if words[0] not in COMMANDS or len(files) != 3:
            return 126
        environment = merged(os.environ, message["environment"])
        try:
            process = subprocess.Popen(
                words, cwd=message["folder"], env=environment, stdin=files[0], stdout=files[1], stderr=files[2], start_new_session=True
            )
        except OSError as error:
            os.write(files[2], f"{words[0]}: cannot be started on {socket.gethostname()}: {error.strerror}\n".encode())
            return 127
        self._running.append(process)
        threading.Thread(target=_hand_on, args=(connection, process), daemon=True).start()
        code = process.wait()
        return code if code >= 0 else 128 - code


def _hand_on(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Each byte is a signal for the command; where who asked is gone, so is the command."""
    with suppress(OSError):
        while byte := connection.recv(1):
            process.send_signal(byte[0])
    if process.poll() is None:
        process.terminate()


def merged(host: Mapping[str, str], inside: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command for Slurm: the host's own, and of what goes into containers what it is in there."""
    own = {name: value for name, value in host.items() if not passed(name)}
    if inside.get("HLS_SRUN_OPTIONS"):  # its tasks begin in the container: what the host's Python needs is not for them
        own = {name: value for name, value in own.items() if not name.startswith(("PYTHONHOME", "VIRTUAL_ENV", "CONDA", "LD_"))}
    return {**own, **{name: value for name, value in inside.items() if passed(name) and name not in (HOST, TASK)}}


def passed(name: str) -> bool:
    """Whether the variable `name` goes into containers."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PASSED)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A message with its open files: eight hexadecimal digits of length, and JSON. Raises EOFError and ValueError where it is not whole."""
    files = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * files.itemsize))
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    body, length = b"", int(head, 16)
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise EOFError
        body += part
    message: dict[str, Any] = json.loads(body)
    return message, list(files)


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code. A signal that comes just before a wait without end would be heeded after it only: Python's handlers run in between."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)


def main(arguments: list[str]) -> int:
    """Run the command in the container; its exit code, or the end by the signal that ended it."""
    folder, words = Path(arguments[0]), arguments[2:]
    host = ContainerHost(f"hls-container-{os.getpid()}-{os.urandom(8).hex()}")
    own = {
        HOST: host.name,
        PYTHON: sys.executable,
        TASK: shlex.join([sys.executable, "-m", "stacks.slurm.container_host", str(folder), "--"]),
    }
    # The runtime may be what serves the image's files, and Slurm may signal all processes: blocked for it, unblocked inside.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    command = [str(folder / "container.sh"), words[0], "-m", "stacks.slurm.container_inside", *words]
    try:
        process = subprocess.Popen(command, env={**os.environ, **own})
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127

    def hand_on(number: int, frame: FrameType | None) -> None:
        host.send(number)

    for number in STOP:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    code = _end_of(process)
    host.end()
    if code and not host.pid:
        print(f"the container on {socket.gethostname()} did not start (exit code {code}): see the line above", file=sys.stderr)
    if code < 0:
        if -code in STOP:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
