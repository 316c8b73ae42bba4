from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Of a process of its own: memory that earlier tests left free in the heap would serve the blocks without any fault.
MEASURE = """
import ctypes, resource
from hls_foundry.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def page_faults(blocks):
    # Of taking, filling and freeing blocks of 48 MiB one after the other; above 32 MiB glibc maps each anew.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        block = libc.malloc(ctypes.c_size_t(48 << 20))
        ctypes.memset(block, 1, 48 << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = page_faults(4)
with keep_freed_memory():
    page_faults(4)  # the heap grows
    within = page_faults(4)
print(without, within, page_faults(4))
"""


def test_freed_memory_is_used_again_and_given_back_in_the_end() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")
    printed = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=60).stdout
    before, within, after = map(int, printed.split())
    assert within < before / 10
    assert after > before / 2
