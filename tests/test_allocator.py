from __future__ import annotations

import ctypes
import resource

import pytest

from hls_foundry.allocator import keep_freed_memory


def page_faults(libc: ctypes.CDLL, blocks: int) -> int:
    """Of taking, filling and freeing blocks of 48 MiB one after the other; above 32 MiB glibc maps each anew."""
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        block = libc.malloc(ctypes.c_size_t(48 << 20))
        ctypes.memset(block, 1, 48 << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_and_given_back_in_the_end() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("the C library is not glibc")
    without = page_faults(libc, 4)
    with keep_freed_memory():
        page_faults(libc, 4)  # the heap grows
        assert page_faults(libc, 4) < without / 10
    assert page_faults(libc, 4) > without / 2
