"""Keeps memory that tensors free for the next ones: on a CPU a third of a small model's training time went into page faults.

glibc gives large blocks back to the kernel as soon as they are freed, and the kernel zeroes each page again when the next step
touches it. A training step or a pass over tiles frees and asks for the same sizes over and over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
LARGEST_INT = 2**31 - 1
MIB = 1 << 20


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """For the whole process, until the context ends: blocks of any size come from the heap, and the heap does not shrink.

    Costs no memory beyond the peak and what fragmentation adds; the end gives back what is free. Without glibc it does nothing.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
    libc.mallopt(M_TOP_PAD, 64 * MIB)
    try:
        yield
    finally:
        # The values that glibc's own adjustment ends at in a process with large blocks, which setting any of them turns off.
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        libc.mallopt(M_TOP_PAD, 128 * 1024)
        libc.malloc_trim(0)
