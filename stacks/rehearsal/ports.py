"""Free ports for what a rehearsal starts."""

from __future__ import annotations

import random
import socket

from hls_foundry.errors import RehearsalError

# Below the range that systems give to outgoing connections, so that nothing takes them between this look and the daemons' own.
FIRST, LAST = 20_000, 32_000
ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """`count` ports in a row that nothing listens on. Raises RehearsalError where there are none."""
    for _ in range(ATTEMPTS):
        ports = list(range(first := random.randint(FIRST, LAST - count), first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RehearsalError(f"no {count} free ports in a row between {FIRST} and {LAST}: stop what listens there")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
