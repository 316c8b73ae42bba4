"""The daemons of one rehearsal cluster: munged, slurmctld and a slurmd a node, in the cluster's private folder."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hls_foundry.errors import SlurmError
from stacks.rehearsal.processes import Process, end, wait_until
from stacks.slurm.rehearsal_config import Shape, gres_conf
from stacks.slurm.rehearsal_network import NodeNetwork
from stacks.slurm.rehearsal_processes import run
from stacks.slurm.rehearsal_record import FOLDER_PREFIX

PRIVATE, TRAVERSABLE, READABLE = 0o700, 0o711, 0o755
FOLDERS = {"etc": READABLE, "log": READABLE, "run": READABLE, "munge": READABLE, "spool": READABLE, "dev": READABLE,
           "state": PRIVATE, "keys": PRIVATE}  # fmt: skip
LONGEST_FOLDER = 70  # a step's socket adds some 35 characters, and 108 are the limit
PID_FILE_S = 5.0
# The node's own /etc/hosts and host name, in namespaces that end with its last process.
AS_NODE = 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -N "$2"'


def new_folder() -> Path:
    """The path of a private folder for a cluster, which is not there yet. Raises SlurmError where it would be too long."""
    try:
        above = Path(tempfile.gettempdir()).resolve()
    except FileNotFoundError:
        raise SlurmError("no folder for temporary files can be written: set TMPDIR to one") from None
    folder = above / f"{FOLDER_PREFIX}{secrets.token_hex(6)}"
    if len(str(folder)) > LONGEST_FOLDER:
        raise SlurmError(f"{above} is too long a path for the cluster's sockets: set TMPDIR to a shorter one, such as /tmp")
    return folder


def make_folder(folder: Path) -> None:
    """Make the folder and what is in it; other users may pass through it to the socket and slurm.conf. Raises SlurmError."""
    try:
        folder.mkdir(mode=PRIVATE)
        for name, mode in FOLDERS.items():
            (folder / name).mkdir()
            (folder / name).chmod(mode)
        folder.chmod(TRAVERSABLE)
    except OSError as error:
        raise SlurmError(f"no folder for the cluster under {folder.parent} ({error.strerror}): set TMPDIR to another") from None


class Daemons:
    """Starts and stops them. `processes`: those known, by name: "munged", "slurmctld", or a node's."""

    def __init__(self, folder: Path, shape: Shape, network: NodeNetwork | None, processes: Mapping[str, Process]) -> None:
        self.folder = folder
        self.shape = shape
        self.network = network
        self.processes = dict(processes)
        self.names = ["munged", "slurmctld", *shape.names]  # in the order that they start in
        self.environment = {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}

    @property
    def any_alive(self) -> bool:
        return any(process.alive for process in self.processes.values())

    def dead(self) -> list[str]:
        return [name for name in self.names if not self._is_alive(name)]

    def configure(self, slurm_conf: str, hosts: str) -> None:
        """Write what the daemons read. Raises SlurmError (disk full, …)."""
        try:
            (self.folder / "etc" / "slurm.conf").write_text(slurm_conf)
            (self.folder / "etc" / "hosts").write_text(hosts)
            (self.folder / "etc" / "gres.conf").write_text(gres_conf(self.shape.gpus, self._gpu_devices()))
            (self.folder / "etc" / "cgroup.conf").write_text("")  # without one, slurmd warns at each start
            for name in self.shape.names:
                (self.folder / "spool" / name).mkdir(exist_ok=True)
            key = self.folder / "keys" / "munge.key"
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o600)
        except OSError as error:
            raise SlurmError(f"{error.filename or self.folder} cannot be written ({error.strerror}): set TMPDIR to another place") from None

    def start(self, name: str) -> str:
        """Start a daemon that is not alive; returns what went wrong in one line, or nothing."""
        if self._is_alive(name):
            return ""
        pid_file = self._pid_file(name)
        pid_file.unlink(missing_ok=True)
        done = run(self._command(name), self.environment)  # it detaches itself
        if done.returncode:
            return " ".join(done.stderr.split()) or f"{name} ended with exit code {done.returncode}: {self.last_words(name)}"
        if not wait_until(lambda: self._read_pid(pid_file) is not None, PID_FILE_S):
            return f"{name} ended at once: {self.last_words(name)}"
        process = Process.of(self._read_pid(pid_file) or 0)
        if process is None:
            return f"{name} ended at once: {self.last_words(name)}"
        self.processes[name] = process
        return ""

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop one daemon with a signal and wait for its end. Raises SlurmError for a name that there is not."""
        process = self._known(name)
        if number == signal.SIGTERM:
            end([process])
        elif process.alive:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
            wait_until(lambda: not process.alive, 5.0)

    def kill(self, name: str) -> None:
        self.stop(name, signal.SIGKILL)

    def node_states(self) -> dict[str, str]:
        """Slurm's word on each node; empty where the controller does not answer."""
        lines = run(["sinfo", "-h", "-N", "-p", "batch", "-o", "%N %T"], self.environment).stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    def last_words(self, name: str) -> str:
        """The end of a daemon's log, in one line: what was fatal, else its last."""
        try:
            lines = (self.folder / "log" / f"{name}.log").read_text(errors="replace").splitlines()[-50:]
        except OSError:
            return "it has no log"
        fatal = [line for line in lines if "fatal:" in line]  # "error:" is what a first start is full of
        return (fatal or lines or ["its log is empty"])[-1][:300]

    def _command(self, name: str) -> list[str]:
        folder = self.folder
        if name == "munged":
            keys = folder / "keys"
            files = {"key-file": keys / "munge.key", "seed-file": keys / "munge.seed", "socket": folder / "munge" / "socket"}
            files |= {"pid-file": self._pid_file(name), "log-file": folder / "log" / "munged.log"}
            return ["munged", *(f"--{option}={path}" for option, path in files.items())]
        if name == "slurmctld":
            return ["slurmctld"]
        if self.shape.network == "none":
            return ["slurmd", "-N", name]
        own = ["unshare", "-m", "-u", "--propagation", "private", "sh", "-c", AS_NODE, "sh", str(folder / "etc" / "hosts"), name]
        return [*(self.network.enter(name) if self.network else []), *own]

    def _gpu_devices(self) -> str:
        """What stands for GPUs: character devices (Slurm gives no CUDA_VISIBLE_DEVICES for anything else). Raises SlurmError."""
        if not self.shape.gpus:
            return ""
        device = self.folder / "dev" / "gpu"
        try:
            for index in range(self.shape.gpus):
                if not Path(f"{device}{index}").exists():
                    os.mknod(f"{device}{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null's
        except OSError:  # no right to make devices: those of terminals do
            if not all(Path(f"/dev/tty{index}").is_char_device() for index in range(self.shape.gpus)):
                raise SlurmError(f"{self.shape.gpus} GPUs cannot be pretended here (no devices): use --gpus 0, or run as root") from None
            return "/dev/tty"
        return str(device)

    def _pid_file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.pid"

    def _read_pid(self, path: Path) -> int | None:
        try:
            return int(path.read_text())
        except (OSError, ValueError):  # not there, or not yet whole
            return None

    def _known(self, name: str) -> Process:
        if name not in self.processes:
            raise SlurmError(f"the rehearsal cluster has no '{name}': it has {', '.join(self.names)}")
        return self.processes[name]

    def _is_alive(self, name: str) -> bool:
        return name in self.processes and self.processes[name].alive
