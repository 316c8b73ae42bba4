"""The control socket of a local endpoint's server, as we speak to it: sockets go back and forth over it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hls_foundry.errors import EndpointError

SUN_PATH = 100  # a Unix socket's path has about 108 bytes
SOCKET = "control.sock"
ANSWER_S = 40.0  # a server that is starting has little time for us


def open_port(folder: Path, name: str) -> None:
    """Tell the server to answer on its public socket. Raises EndpointError."""
    with _connected(folder, name) as connection:
        connection.sendall(b"open")
        _confirmed(connection, folder)


def hand_over(folder: Path, name: str, *, public: socket.socket, check: socket.socket) -> None:
    """Send a server that inherited none its sockets; it answers on `check` from then on. Raises EndpointError."""
    for word, given in ((b"public", public), (b"check", check)):
        with _connected(folder, name) as connection:
            socket.send_fds(connection, [word], [given.fileno()])
            _confirmed(connection, folder)


def taken_over(folder: Path, name: str) -> socket.socket:
    """The public socket of a running server, shared with us. Raises EndpointError."""
    with _connected(folder, name) as connection:
        connection.sendall(b"socket")
        _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
    if not descriptors:
        raise EndpointError(f"the server of {folder.name} did not hand over its socket: see its log")
    return socket.socket(fileno=descriptors[0])


def _confirmed(connection: socket.socket, folder: Path) -> None:
    if connection.recv(16) != b"ok":
        raise EndpointError(f"the server of {folder.name} did not open the endpoint's port: see its log")


@contextmanager
def _connected(folder: Path, name: str) -> Iterator[socket.socket]:
    """A connection to a control socket, however long the folder's path is. Whatever goes wrong on it is an EndpointError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            path = folder / name
            connection.connect(str(path) if len(os.fsencode(path)) < SUN_PATH else f"/proc/self/fd/{descriptor}/{name}")
            yield connection
    except OSError as error:
        said = error.strerror or str(error)
        raise EndpointError(f"the server of {folder.name} does not answer on its control socket ({said}): delete the endpoint") from None
    finally:
        os.close(descriptor)
