"""One of Slurm's commands, given in a container and run on the host: `python -m stacks.slurm.container_client srun …`.

The programs srun, scontrol and so on that a container finds first on its PATH start this. Standard library only.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from stacks.slurm.container_host import HOST, STOP


def send(connection: socket.socket, message: Mapping[str, Any], files: list[int]) -> None:
    """What container_host.receive() reads."""
    body = json.dumps(message).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    connection.sendmsg([f"{len(body):08x}".encode()], rights)
    connection.sendall(body)


def connect(environment: Mapping[str, str] = os.environ) -> socket.socket:
    """To the host's side of this container. Raises OSError where there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(f"\0{environment.get(HOST, '')}")
    return connection


def main(command: list[str]) -> int:
    """The command's exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # a signal is handed on once there is a command to hand it to
    try:
        connection = connect()
        asked = {"command": command, "folder": str(os.getcwd()), "environment": dict(os.environ)}  # noqa: PTH109
        send(connection, asked, [0, 1, 2])
    except OSError as error:
        print(f"{command[0]}: the host of this container does not answer ({error.strerror})", file=sys.stderr)
        return 127

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            connection.sendall(bytes([number]))

    for number in STOP:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    connection.settimeout(0.1)  # for a signal that comes just before a wait, after which its handler would run
    answer = b""
    while True:
        try:
            part = connection.recv(64)
        except TimeoutError:
            continue
        if not part:
            return int(json.loads(answer)) if answer else 1
        answer += part


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
