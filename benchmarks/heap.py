"""The state of the C library's heap under a benchmark on a CPU, which decides whether new tensors cost page faults.

glibc gives memory back to the system above thresholds that grow with the largest block that was freed. A process that
has freed no block of megabytes yet gives each temporary of a megabyte back and faults it in again, a microsecond a
page; one that has, as after any call of a larger model, does not. "settled" is the second state, "fresh" the first.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 1 << 20
# glibc's own largest threshold, and twice that; and what it sets after a block of one MiB.
_STATES = {"settled": (32 * _MIB, 64 * _MIB), "fresh": (_MIB + 8192, 2 * (_MIB + 8192))}


@contextmanager
def settled(device: torch.device, state: str = "settled") -> Iterator[None]:
    """Set it for the block, where the C library is glibc and the device a CPU."""
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" and device.type == "cpu" else None
    if library is not None:
        _set(library, state)
    try:
        yield
    finally:
        if library is not None:
            _set(library, "settled")


def _set(library: ctypes.CDLL, state: str) -> None:
    mmap, trim = _STATES[state]
    library.mallopt(_M_MMAP_THRESHOLD, mmap)
    library.mallopt(_M_TRIM_THRESHOLD, trim)
    library.malloc_trim(0)
