"""Where Slurm's commands run and the run's files lie: this machine, or a login node over OpenSSH; the same shell commands serve both."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from types import TracebackType
from typing import Protocol

from hls_foundry.errors import SlurmError

FORMAT = {"SLURM_TIME_FORMAT": "%s"}
"""Makes Slurm's commands tell times as seconds since the epoch: nothing to guess about time zones (jobcomp's are local ones)."""
HABITS = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_")
"""Beginnings of the variables with which users change these commands' defaults, and would change our answers and scripts."""

MISSING = 44
"""Exit code with which the shell commands below say that a file does not exist."""
EXISTS = 45
"""Exit code with which they say that a folder exists already."""

# One line each (csh as the login shell takes no newline in quotes); $1 is the path. Content comes through stdin only.
_WRITE = (
    'umask 077; mkdir -p -- "$(dirname -- "$1")" && t=$(mktemp -- "$1.XXXXXXXX") || exit 1; '
    # a connection that breaks half-way looks like the end of the file: count the bytes before the rename
    'cat >"$t" && [ "$(wc -c <"$t")" -eq "$3" ] && chmod -- "$2" "$t" && mv -fT -- "$t" "$1" || { rm -f -- "$t"; exit 1; }'
)
_UNPACK = (
    f'umask 077; [ ! -e "$1" ] || exit {EXISTS}; mkdir -p -- "$(dirname -- "$1")" && t=$(mktemp -d -- "$1.XXXXXXXX") || exit 1; '
    'tar -xzf - -C "$t" --no-same-owner && mv -T -- "$t" "$1" || { rm -rf -- "$t"; exit 1; }'
)
_READ = f'[ -e "$1" ] || exit {MISSING}; cat -- "$1"'
_REMOTE = (  # 255 is how ssh itself fails: a command that ends so (sbatch does) must not look like a broken connection
    f"unset $(env | sed -nE 's/^(({'|'.join(HABITS)})[A-Za-z0-9_]*)=.*/\\1/p'); \"$@\"; code=$?; [ $code -ne 255 ] || exit 254; exit $code"
)
_TAIL = '[ -e "$1" ] || exit 0; tail -c "+$2" -- "$1"'

SOCKET_PATH_LIMIT = 104
"""Bytes of a Unix socket's path (macOS; Linux: 108), of which ssh takes 17 for a temporary suffix of its own."""

_FAILURES: tuple[tuple[str, str], ...] = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed", "its host key has changed: ask the site whether that is right"),
    (r"Host key verification failed|host key is known", "its host key is unknown: run `ssh {login}` once, compare the key and accept it"),
    (
        r"Permission denied \(.*(password|keyboard-interactive)",
        "it asks for a password and no key was accepted: load the key with ssh-add, or ssh-copy-id {login}",
    ),
    (
        r"Permission denied \(|Too many authentication failures|no mutual signature",
        "permission denied, none of the keys was accepted: load the key with ssh-add, and check the user name",
    ),
    (
        r"command-line.*Bad configuration option|Bad configuration option|keyword .* extra arguments",
        "ssh refuses an option: correct ssh_options or ~/.ssh/config",
    ),
)


@dataclass(frozen=True)
class Completed:
    """How a command ended: exit code (minus the signal's number where one killed it) and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """Runs commands and keeps files on the machine that has Slurm's commands and the run folders."""

    @property
    def where(self) -> str:
        """The machine in words, for error messages: "this machine" or "user@host"."""
        ...

    def run(self, command: Sequence[str], *, input: bytes | None = None, timeout: float = 60) -> Completed:
        """Run `command` (no shell in between).

        Exit code 127 where it does not exist; over ssh 254 for 255.
        Raises TimeoutError after `timeout` seconds (the command may have had its effect),
        SlurmError where the machine cannot be reached.
        """
        ...

    def write(self, path: str | PurePath, content: bytes, mode: int = 0o600) -> None:
        """Write a file atomically; missing parent folders are made with mode 0700. Raises SlurmError (disk full, no permission)."""
        ...

    def read(self, path: str | PurePath) -> bytes:
        """A file's content. Raises FileNotFoundError where there is none, SlurmError where it cannot be read."""
        ...

    def tail(self, path: str | PurePath, offset: int) -> bytes:
        """What a file holds from byte `offset` on; empty where it does not exist yet or is shorter. Raises SlurmError."""
        ...

    def unpack(self, archive: bytes, folder: str | PurePath) -> None:
        """Unpack a tar.gz into a new folder of mode 0700, which appears whole or not at all. Raises SlurmError."""
        ...

    def remove(self, folder: str | PurePath) -> None:
        """Delete a file or a folder with all it holds; nothing happens where it does not exist. Raises SlurmError."""
        ...

    def exists(self, path: str | PurePath) -> bool:
        """Whether there is a file or folder of that name. Raises SlurmError where the machine cannot be reached."""
        ...


@dataclass(frozen=True)
class Ended:
    """How a process ended, with its output as bytes."""

    returncode: int
    stdout: bytes
    stderr: str

    @property
    def last_line(self) -> str:
        """The last thing it said on stderr, in one line."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.returncode}"


def run_process(command: Sequence[str], environment: Mapping[str, str], input: bytes | None, timeout: float) -> Ended:
    """Run a process of this machine in a session of its own and end it, with its children, after `timeout` seconds (TimeoutError)."""
    # stderr goes to a file: an ssh that stays behind as connection master may keep it open, and a pipe would wait for that
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C at the terminal must not cut an sbatch in two
            )
        except (FileNotFoundError, PermissionError) as error:
            return Ended(127, b"", f"{command[0]}: {error.strerror}")
        try:
            output, _ = process.communicate(input, timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{command[0]} gave no answer in {timeout:.0f} s") from None
            raise
        errors.seek(0)
        return Ended(process.returncode, output, errors.read().decode(errors="replace"))


class CommandTransport(ABC):
    """A Transport made of nothing but commands: files go through sh, mktemp, cat, mv and tar."""

    where: str

    @abstractmethod
    def execute(self, command: Sequence[str], input: bytes | None, timeout: float) -> Ended:
        """Run `command` on the machine; as Transport.run, with bytes."""

    def run(self, command: Sequence[str], *, input: bytes | None = None, timeout: float = 60) -> Completed:
        """See Transport."""
        ended = self.execute(command, input, timeout)
        return Completed(ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr)

    def write(self, path: str | PurePath, content: bytes, mode: int = 0o600) -> None:
        """See Transport."""
        ended = self._shell(_WRITE, path, f"{mode:04o}", str(len(content)), input=content)
        if ended.returncode:
            raise SlurmError(f"cannot write {path} on {self.where}: {ended.last_line}: check free space, quota and permissions there")

    def read(self, path: str | PurePath) -> bytes:
        """See Transport."""
        ended = self._shell(_READ, path)
        if ended.returncode == MISSING:
            raise FileNotFoundError(f"no {path} on {self.where}")
        if ended.returncode:
            raise SlurmError(f"cannot read {path} on {self.where}: {ended.last_line}: check its permissions")
        return ended.stdout

    def tail(self, path: str | PurePath, offset: int) -> bytes:
        """See Transport."""
        ended = self._shell(_TAIL, path, str(offset + 1))
        if ended.returncode:
            raise SlurmError(f"cannot read {path} on {self.where}: {ended.last_line}: check its permissions")
        return ended.stdout

    def unpack(self, archive: bytes, folder: str | PurePath) -> None:
        """See Transport."""
        ended = self._shell(_UNPACK, folder, input=archive)
        if ended.returncode == EXISTS:
            raise SlurmError(f"{folder} exists already on {self.where}: choose another folder, or remove it")
        if ended.returncode:
            raise SlurmError(
                f"cannot unpack into {folder} on {self.where}: {ended.last_line}: check free space, quota and permissions there"
            )

    def remove(self, folder: str | PurePath) -> None:
        """See Transport."""
        path = PurePosixPath(folder)
        if len(path.parts) < 3 or not path.is_absolute() or ".." in path.parts:
            raise SlurmError(f"will not delete '{folder}' on {self.where}: give the absolute path of a run folder")
        ended = self._shell('rm -rf -- "$1"', path)
        if ended.returncode:
            raise SlurmError(f"cannot delete {folder} on {self.where}: {ended.last_line}: check its permissions")

    def exists(self, path: str | PurePath) -> bool:
        """See Transport."""
        return self._shell('[ -e "$1" ]', path).returncode == 0

    def _shell(self, script: str, path: str | PurePath, *arguments: str, input: bytes | None = None) -> Ended:
        """Run one of the scripts above on `path`; ten minutes are for a large archive over a thin line."""
        try:
            return self.execute(["env", "LC_ALL=C", "sh", "-c", script, "sh", str(path), *arguments], input, 600)
        except TimeoutError:
            raise SlurmError(
                f"{path} on {self.where}: the file system gave no answer in 10 minutes: check it with ls, then try again"
            ) from None


class LocalTransport(CommandTransport):
    """This machine is the login node. `environment` (for example SLURM_CONF) is added to its own."""

    where = "this machine"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})

    def execute(self, command: Sequence[str], input: bytes | None, timeout: float) -> Ended:
        """See CommandTransport."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(HABITS)}
        return run_process(command, {**own, **FORMAT, **self._environment}, input, timeout)


class ConnectionLost(SlurmError):
    """The login node cannot be reached now; a later attempt may do better."""


class SSHTransport(CommandTransport):
    """Commands and files on `login` ("user@host") over ssh.

    Options are OpenSSH's words, for example ["-p", "2222", "-i", "~/.ssh/site"]. The first command opens a connection which all others
    share, and which ends with close(), with this process, or two minutes after the last command. `environment` (for example SLURM_CONF)
    goes before each command as `env K=V`, readable for all users of the login node.
    """

    def __init__(
        self, login: str, options: Sequence[str] = (), environment: Mapping[str, str] | None = None, connect_timeout: int = 15
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*@[\w.:\[\]-]+|[A-Za-z0-9_][\w.-]*", login):
            raise SlurmError(f"'{login}' is not a login: write user@host, or a Host of ~/.ssh/config")
        self.where = login
        self._environment = dict(environment or {})
        self._connected = False
        self._ssh = [
            "ssh",
            *("-o", "BatchMode=yes"),
            *("-o", "ControlMaster=auto"),
            *("-o", "ControlPersist=120"),
            *("-o", f"ConnectTimeout={connect_timeout}"),
            *("-o", "ServerAliveInterval=15"),
            *("-o", "ServerAliveCountMax=4"),
            *("-o", "ForwardAgent=no"),
            *("-o", "ForwardX11=no"),
            *("-o", "LogLevel=ERROR"),
            "-T",
            *(os.path.expanduser(option) for option in options),  # noqa: PTH111 (an option may be a path or not)
        ]
        self._folder: Path | None = None
        self._end: weakref.finalize[[list[str], Path], SSHTransport] | None = None

    def __enter__(self) -> SSHTransport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the shared connection. The next command opens a new one."""
        if self._end:
            self._end()
        self._folder = self._end = None

    def execute(self, command: Sequence[str], input: bytes | None, timeout: float) -> Ended:
        """See CommandTransport; raises ConnectionLost where a connection that once stood is gone."""
        ended = run_process([*self._shared(), "--", self.where, self._line(command)], os.environ, input, timeout)
        if ended.returncode == 127 and ended.stderr.startswith("ssh: No such file"):
            raise SlurmError("no ssh on the PATH: install OpenSSH's client")
        if ended.returncode == 255:
            raise self._failure(ended)
        self._connected = True
        return ended

    def _line(self, command: Sequence[str]) -> str:
        """`command` for the login shell, quoted. All users of the login node can read it: no secrets in it."""
        variables = (f"{name}={value}" for name, value in {**FORMAT, **self._environment}.items())
        return shlex.join(["sh", "-c", _REMOTE, "sh", "env", *variables, *command])

    def _shared(self) -> list[str]:
        """ssh with the socket of the shared connection, in a private folder whose path is short enough for one."""
        if self._folder is None:
            place = tempfile.gettempdir()
            if len(place) + 40 > SOCKET_PATH_LIMIT:
                place = "/tmp"  # macOS' own temporary folder is too long
            self._folder = Path(tempfile.mkdtemp(prefix="hls-", dir=place))
            self._end = weakref.finalize(
                self, _end_master, [*self._ssh, "-S", str(self._folder / "s"), "-O", "exit", self.where], self._folder
            )
        return [*self._ssh, "-S", str(self._folder / "s")]

    def _failure(self, ended: Ended) -> SlurmError:
        """What ssh's own failure means, in one line."""
        for pattern, meaning in _FAILURES:
            if re.search(pattern, ended.stderr):
                return SlurmError(f"cannot log in to {self.where}: {meaning.format(login=self.where)}")
        said = ended.last_line if ended.stderr.strip() else "the connection broke"
        if self._connected:
            return ConnectionLost(f"{self.where} cannot be reached over ssh any more: {said}: check the network")
        return SlurmError(f"{self.where} cannot be reached over ssh: {said}: check the host's name, the network and the VPN")


def _end_master(command: list[str], folder: Path) -> None:
    """Ask the connection's master to leave (it may be gone already) and remove its folder."""
    if (folder / "s").exists():
        run_process(command, os.environ, None, 10)
    shutil.rmtree(folder, ignore_errors=True)
