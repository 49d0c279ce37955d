"""The state of the C library's heap under a benchmark on a CPU, which decides whether new tensors cost page faults.

glibc gives memory back to the system above thresholds that grow with the largest block that was freed. A process that
has freed no block of megabytes yet may give each temporary of a megabyte back and fault it in again, a microsecond a
page; after any call of a larger model it does not. Benchmarks run in that second state, whatever ran before them.
"""

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# glibc's own largest threshold, and twice that.
_MMAP, _TRIM = 32 << 20, 64 << 20


def settle(device: torch.device) -> None:
    """Set it, where the C library is glibc and the device a CPU."""
    if platform.libc_ver()[0] == "glibc" and device.type == "cpu":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM)
