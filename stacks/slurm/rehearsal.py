"""The rehearsal cluster: a real Slurm cluster of N nodes on this machine, made of the system's own packages.

    HOME/cluster/lock            held while the cluster is changed
    HOME/cluster/cluster.json    what runs and where, replaced atomically
    HOME/cluster/failed-…/       logs of a start that failed
    FOLDER                       private, under the system's temporary folder (socket paths must be short):
        etc/ state/ spool/ run/ log/ munge/ keys/ dev/

As root every node has its own host name (network "hosts") or network namespace ("isolated"); a normal user gets a cluster that runs
jobs of that user only (network "none").
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from hls_foundry.errors import SlurmError
from stacks.rehearsal.ports import free_ports
from stacks.rehearsal.processes import end, wait_until
from stacks.slurm.rehearsal_config import Layout, Shape, hosts_file, local_address, slurm_conf
from stacks.slurm.rehearsal_daemons import Daemons, make_folder, new_folder
from stacks.slurm.rehearsal_network import NodeNetwork, can_name_hosts
from stacks.slurm.rehearsal_processes import daemons_of, job_processes_of, missing_programs, run, search_path
from stacks.slurm.rehearsal_record import Record, read_record, write_record

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
READY_S = 20.0
CANCEL_S = 5.0
LOCK_S = 3.0
PORT_ATTEMPTS = 3
READY_STATES = ("idle", "mixed", "allocated")
Say = Callable[[str], None]


class Cluster:
    """The rehearsal cluster of one home folder. `shape`: what up() starts; `say` gets one line an event."""

    def __init__(self, home: Path, shape: Shape, say: Say = lambda line: None) -> None:
        self.home = home.resolve() / "cluster"
        self.shape = shape
        self.say = say

    @property
    def record(self) -> Record | None:
        """What is on file, also of a cluster that is gone. Raises SlurmError where the file is damaged."""
        return read_record(self.home)

    @property
    def folder(self) -> Path:
        return Path(self._current().folder)

    @property
    def slurm_conf(self) -> Path:
        return Path(self._current().slurm_conf)

    @property
    def nodes(self) -> list[str]:
        return self._current().shape.names

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.slurm_conf), "PATH": search_path()}

    @property
    def running(self) -> bool:
        """Whether any of its daemons lives."""
        return self.record is not None and self._daemons(self._current()).any_alive

    def addresses(self) -> dict[str, str]:
        """The nodes' addresses, by name: with network "none" names do not resolve."""
        return dict(self._current().addresses)

    def node_states(self) -> dict[str, str]:
        """Slurm's own word on each node (idle, mixed, allocated, down, …); empty where the controller does not answer."""
        return self._daemons(self._current()).node_states()

    def dead_daemons(self) -> list[str]:
        """The daemons that should live and do not: munged, slurmctld, or the name of a node."""
        return self._daemons(self._current()).dead()

    # -- start and stop

    def up(self) -> None:
        """Start it and wait until every node is idle. One of this shape that is up already gets back what it lost.

        Raises SlurmError (one line): packages missing, one of another shape is up, a daemon does not start. What is left of a cluster
        that is gone is removed first; an interrupted or failed start leaves nothing but, after a failure, its logs.
        """
        if what := missing_programs([*PROGRAMS, *_network_programs(self.shape)]):
            raise SlurmError(what)
        shape = self._possible(self.shape)
        with self._locked():
            found = self.record
            if found and found.complete and self._daemons(found).any_alive:
                self._mend(found, shape)
                return
            if found:
                self._remove(found)
                self.say("removed what was left of a rehearsal cluster that is gone")
            self._start(shape)

    def down(self) -> None:
        """Cancel its jobs, stop its daemons, remove its namespaces, its folder and its record; safe to repeat."""
        with self._locked():
            found = self.record
            if found is None:
                self.say("no rehearsal cluster is up")
                return
            alive = self._daemons(found).any_alive
            if alive:
                self._cancel_jobs(found)
            self._remove(found)
            self.say("the rehearsal cluster is down" if alive else "removed what was left of a rehearsal cluster that was gone")

    # -- for tests: what breaks on a real cluster

    def kill_slurmd(self, node: str) -> None:
        """kill -9 the node's slurmd. Its job steps live on, as they do in reality."""
        self._daemons(self._current()).kill(node)

    def start_slurmd(self, node: str) -> None:
        with self._locked():
            self._mended(self._current(), node)

    def stop_controller(self, *, kill: bool = False) -> None:
        """Stop slurmctld: cleanly (it saves its state), or with kill -9."""
        self._daemons(self._current()).stop("slurmctld", signal.SIGKILL if kill else signal.SIGTERM)

    def start_controller(self) -> None:
        with self._locked():
            self._mended(self._current(), "slurmctld")

    def partition_network(self, node: str) -> None:
        """Cut the node off from everything else (network "isolated")."""
        self._network_of(self._current()).cut(node)

    def heal_network(self, node: str) -> None:
        self._network_of(self._current()).heal(node)

    # -- parts of a start

    def _possible(self, shape: Shape) -> Shape:
        """`shape`, without host names where this machine does not allow them. Raises SlurmError for an impossible "isolated"."""
        if shape.network == "isolated" and os.geteuid() != 0:
            raise SlurmError("network 'isolated' needs root: run as root, or use --network none")
        if shape.network == "none" or can_name_hosts():
            return shape
        if shape.network == "isolated":
            raise SlurmError("network 'isolated' needs the right to make namespaces (CAP_SYS_ADMIN): use --network none")
        self.say("nodes cannot have host names of their own here (no right to make namespaces): network none instead of hosts")
        return replace(shape, network="none")

    def _start(self, shape: Shape) -> None:
        folder = new_folder()
        record = Record(str(folder), shape, secrets.token_hex(3), datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            write_record(self.home, record)  # first: a start that is killed is found by the next up or down
            make_folder(folder)
            if shape.network == "isolated":
                network = NodeNetwork.choose(record.identity)
                record = replace(record, subnet=network.subnet)
                write_record(self.home, record)
                network.create(shape.names)
            for attempt in range(1, PORT_ATTEMPTS + 1):
                record, trouble = self._start_daemons(record)
                if not trouble:
                    break
                if attempt == PORT_ATTEMPTS or "already in use" not in trouble:
                    raise SlurmError(f"the rehearsal cluster did not start: {trouble} (logs: {self._keep_logs(folder)})")
                end(daemons_of(folder))
            write_record(self.home, replace(record, complete=True))
        except BaseException:
            self._remove(record)
            raise
        self.say(f"the rehearsal cluster is up: {shape.line()}")
        self.say(f"export SLURM_CONF={record.slurm_conf}")

    def _start_daemons(self, record: Record) -> tuple[Record, str]:
        """Configure and start all daemons on free ports; returns the record and what went wrong, if anything did."""
        shape, folder = record.shape, Path(record.folder)
        ports = free_ports(1 + shape.nodes)
        network = self._network_of(record) if record.subnet else None
        host = os.uname().nodename.partition(".")[0]
        here = network.gateway if network else local_address(host)
        local = {name: f"127.0.1.{index}" if shape.network == "hosts" else here for index, name in enumerate(shape.names, 1)}
        addresses = {name: network.address(name) for name in shape.names} if network else local
        layout = Layout(
            folder=PurePosixPath(folder),
            host=host,
            user=pwd.getpwuid(os.geteuid()).pw_name,
            controller=here,
            port=ports[0],
            addresses=addresses,
            ports=dict(zip(shape.names, ports[1:], strict=True)),
        )
        record = replace(record, addresses=addresses)
        daemons = self._daemons(record)
        daemons.configure(slurm_conf(shape, layout), hosts_file(Path("/etc/hosts").read_text(), addresses))
        for name in daemons.names:
            if trouble := daemons.start(name):
                return record, trouble
            record = replace(record, processes=daemons.processes)
            write_record(self.home, record)
        return record, self._wait(record)

    def _wait(self, record: Record) -> str:
        """Wait until all nodes are ready; returns what went wrong, or nothing."""
        daemons = self._daemons(record)

        def settled() -> bool:
            states = daemons.node_states()
            return bool(daemons.dead()) or (len(states) == record.shape.nodes and all(s in READY_STATES for s in states.values()))

        if wait_until(settled, READY_S) and not daemons.dead():
            return ""
        if dead := daemons.dead():
            return f"{dead[0]} ended: {daemons.last_words(dead[0])}"
        states = ", ".join(f"{node} {state}" for node, state in daemons.node_states().items()) or "the controller does not answer"
        return f"not ready after {READY_S:g} s ({states}): {daemons.last_words('slurmctld')}"

    def _mend(self, record: Record, shape: Shape) -> None:
        """Bring a cluster that is up back to what it was. Raises SlurmError where another shape is asked for."""
        if record.shape != shape:
            raise SlurmError(f"a rehearsal cluster is up already: {record.shape.line()}; for another: python run.py cluster down, then up")
        dead = self._daemons(record).dead()
        if dead:
            record = self._mended(record, *dead)
            self.say(f"started again: {', '.join(dead)}")
        self.say(f"the rehearsal cluster is up already: {shape.line()}")
        self.say(f"export SLURM_CONF={record.slurm_conf}")

    def _mended(self, record: Record, *names: str) -> Record:
        """Start these daemons again, where they are dead."""
        daemons = self._daemons(record)
        for name in names:
            if trouble := daemons.start(name):
                raise SlurmError(f"{name} of the rehearsal cluster does not start: {trouble}")
            record = replace(record, processes=daemons.processes)
            write_record(self.home, record)
        return record

    # -- parts of a stop

    def _cancel_jobs(self, record: Record) -> None:
        """Cancel all jobs and wait a little for their ends. A node's dead slurmd is started first: only it ends the steps it left."""
        daemons = self._daemons(record)
        with suppress(SlurmError):  # a cluster that is too broken for this is stopped all the same
            for name in daemons.dead():
                daemons.start(name)
            if self._jobs(daemons.environment):
                self.say("cancelling its jobs")
                run(["scancel", *self._jobs(daemons.environment)], daemons.environment, timeout=CANCEL_S)
                wait_until(lambda: not self._jobs(daemons.environment), CANCEL_S)

    def _jobs(self, environment: Mapping[str, str]) -> list[str]:
        return sorted(set(run(["squeue", "-h", "-o", "%A"], environment, timeout=CANCEL_S).stdout.split()))

    def _remove(self, record: Record) -> None:
        """End every process of the cluster, then remove its network, folder and record."""
        folder = Path(record.folder)
        end([process for process in daemons_of(folder) if process.name != "munged"])
        end(job_processes_of(folder), patience_s=1)
        end(daemons_of(folder))
        if record.subnet:
            self._network_of(record).remove()
        shutil.rmtree(folder, ignore_errors=True)
        end(daemons_of(folder))  # one that an interrupted start had just begun; no other can begin without the folder
        shutil.rmtree(folder, ignore_errors=True)
        (self.home / "cluster.json").unlink(missing_ok=True)

    def _keep_logs(self, folder: Path) -> Path:
        kept = self.home / f"failed-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        shutil.copytree(folder / "log", kept, dirs_exist_ok=True)
        return kept

    # -- what is on file

    def _current(self) -> Record:
        found = self.record
        if found is None:
            raise SlurmError("no rehearsal cluster is up: python run.py cluster up starts one")
        return found

    def _daemons(self, record: Record) -> Daemons:
        network = self._network_of(record) if record.subnet else None
        return Daemons(Path(record.folder), record.shape, network, record.processes)

    def _network_of(self, record: Record) -> NodeNetwork:
        if not record.subnet:
            raise SlurmError(f"the rehearsal cluster's network is '{record.shape.network}': only 'isolated' can be cut")
        return NodeNetwork(record.identity, record.subnet)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held by one change of this home's cluster at a time, over all processes. Raises SlurmError where it is taken."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            lock = (self.home / "lock").open("w")
        except OSError as error:
            raise SlurmError(f"{self.home} cannot be written ({error.strerror}): set HLS_FOUNDRY_HOME to a folder that can") from None
        with lock:
            # A start that was killed holds it until the daemon that it was about to start has begun.
            if not wait_until(lambda: _takes(lock), LOCK_S):
                raise SlurmError(f"another cluster up or down is at work in {self.home}: wait for its end")
            yield


def _takes(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _network_programs(shape: Shape) -> tuple[str, ...]:
    return {"none": (), "hosts": ("unshare",), "isolated": ("unshare", "ip", "nsenter")}[shape.network]
