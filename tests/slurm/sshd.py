"""A real sshd of the tests' own, on the loopback, as the user who runs them."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import missing

SSHD_NEEDS_FOLDER = Path("/run/sshd")
"""Privilege separation's empty folder, which the system's service makes; sshd started as root wants it."""


@dataclass
class Server:
    """A real sshd of this user's own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def login(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    def options(self, *, key: str = "user_key", known_hosts: str = "known_hosts", port: int | None = None) -> list[str]:
        """ssh's options to reach it and nothing else: no agent, no configuration of the user's."""
        return [
            *("-F", "/dev/null"),
            *("-p", str(port or self.port)),
            *("-i", str(self.folder / key)),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", "IdentityAgent=none"),
            *("-o", f"UserKnownHostsFile={self.folder / known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", "StrictHostKeyChecking=yes"),
        ]

    def connections(self) -> int:
        """How many clients sshd has accepted so far."""
        return (self.folder / "log").read_text().count("Accepted publickey")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_sshd(folder: Path) -> Iterator[Server]:
    """An sshd on a free port of the loopback, with keys of its own in `folder`; skips the test where there is none."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not sshd or not shutil.which("ssh"):
        missing("no sshd (openssh-server)")
        raise AssertionError  # unreachable: missing() raises
    for name in ("host_key", "user_key", "strange_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    for name, key in (("known_hosts", "host_key"), ("changed_hosts", "strange_key"), ("no_hosts", None)):
        public = " ".join((folder / f"{key}.pub").read_text().split()[:2]) if key else ""
        (folder / name).write_text(f"[127.0.0.1]:{port} {public}\n" if key else "")
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host_key'}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "StrictModes no",  # pytest's folder may lie under a world-writable one
        "UsePAM no",
        "PermitRootLogin yes",
        "PidFile none",
        "SetEnv SQUEUE_STATES=RUNNING",  # as a user's ~/.profile may say
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    made = os.geteuid() == 0 and not SSHD_NEEDS_FOLDER.exists()
    if made:
        SSHD_NEEDS_FOLDER.mkdir(mode=0o755)
    process = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=(folder / "log").open("wb"), stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while b"Server listening" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Server(folder, port, process)
    finally:
        process.terminate()
        process.wait(10)
        if made:
            SSHD_NEEDS_FOLDER.rmdir()
