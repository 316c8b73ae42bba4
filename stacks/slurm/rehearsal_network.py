"""Network namespaces for the nodes of a rehearsal cluster: they reach each other and this machine, and have no route outside.

The bridge sits in a namespace of its own, so that a firewall on this machine (Docker's, for example) does not filter what nodes say to
each other; on this machine there is one interface, `hlsID`, at the subnet's first address.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hls_foundry.errors import SlurmError
from stacks.slurm.rehearsal_processes import run

SUBNETS = [f"10.{second}.{third}" for second in range(77, 93) for third in range(256)]
FIRST_NODE = 10


@dataclass(frozen=True)
class NodeNetwork:
    """The network of one cluster: `identity` is a few hexadecimal digits that its names are made of, `subnet` the first three numbers."""

    identity: str
    subnet: str

    @classmethod
    def choose(cls, identity: str) -> NodeNetwork:
        """A network whose subnet this machine does not use yet. Raises SlurmError."""
        used = set(re.findall(r"\b(\d+\.\d+\.\d+)\.\d+", _ip("-o", "-4", "addr") + _ip("-o", "-4", "route")))
        return cls(identity, random.choice([subnet for subnet in SUBNETS if subnet not in used]))

    @property
    def gateway(self) -> str:
        """This machine's address, as the nodes see it."""
        return f"{self.subnet}.1"

    def address(self, node: str) -> str:
        return f"{self.subnet}.{FIRST_NODE + int(node[1:])}"

    def enter(self, node: str) -> list[str]:
        """What to put before a command that is to run in the node's namespace."""
        return ["nsenter", f"--net=/run/netns/{self._space(node)}"]

    def create(self, nodes: Sequence[str]) -> None:
        """Raises SlurmError where this machine does not allow it; call remove() then."""
        switch, host = self._space("switch"), f"hls{self.identity}"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        _ip("link", "add", host, "type", "veth", "peer", "name", "login", "netns", switch)
        _ip("-n", switch, "link", "set", "login", "master", "bridge", "up")
        _ip("addr", "add", f"{self.gateway}/24", "dev", host)
        _ip("link", "set", host, "up")
        for node in nodes:
            space = self._space(node)
            _ip("netns", "add", space)
            _ip("-n", switch, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", switch, "link", "set", node, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, node: str) -> None:
        """Cut the node off from all others; what runs on it goes on."""
        _ip("-n", self._space("switch"), "link", "set", node, "down")

    def heal(self, node: str) -> None:
        _ip("-n", self._space("switch"), "link", "set", node, "up")

    def remove(self) -> None:
        """Remove what there is of it; safe to repeat."""
        host = f"hls{self.identity}"
        if re.search(rf"\b{host}@", _ip("-o", "link")):
            _ip("link", "del", host)  # first: a namespace, and what is in it, goes a moment after its deletion
        spaces = re.findall(rf"^{re.escape(self._space(''))}\S+", _ip("netns", "list"), re.MULTILINE)
        for space in spaces:
            _ip("netns", "del", space)

    def _space(self, name: str) -> str:
        return f"hls{self.identity}-{name}"


def _ip(*arguments: str) -> str:
    done = run(["ip", *arguments])
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SlurmError(f"an isolated network cannot be made here ('ip {' '.join(arguments)}': {reason}): use --network hosts or none")
    return done.stdout


def can_name_hosts() -> bool:
    """Whether a process may have a host name and /etc/hosts of its own here (root with the right to mount)."""
    probe = "mount --bind /etc/hosts /etc/hosts && hostname rehearsal"
    return run(["unshare", "-m", "-u", "--propagation", "private", "sh", "-c", probe]).returncode == 0
