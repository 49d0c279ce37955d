"""Memory that is full is recognised whoever says so, and nothing else is taken for it."""

import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from pgraft_fast.errors import InputError, RewardError, is_out_of_memory
from pgraft_fast.finetune.memory import BatchSize


class OutOfMemoryError(RuntimeError):
    """As other libraries name theirs."""


class OutOfResources(Exception):  # noqa: N818
    """As Triton's."""


WORDINGS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 79.15 GiB total capacity)",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 1.2 MB, max allowed: 9.07 GB)",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "hipErrorOutOfMemory",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 "
    "bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "Invalid buffer size: 24.00 GiB",
    "std::bad_alloc",
    "bad allocation",
    "unable to mmap 1024 bytes from file </torch_1>: Cannot allocate memory (12)",
    "Storage size calculation overflowed with sizes=[4611686018427387904]",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.",
)


@pytest.mark.parametrize("text", WORDINGS)
def test_every_allocators_wording(text):
    assert is_out_of_memory(RuntimeError(text))
    sizes = []

    def work(size):
        sizes.append(size)
        if size > 2:
            raise RuntimeError(text)
        return size

    assert BatchSize(8).run(work) == 2 and sizes == [8, 4, 2]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"), torch.cuda.OutOfMemoryError("x"), MemoryError(), OutOfMemoryError("x"),
        OSError(errno.ENOMEM, "Cannot allocate memory"), np._core._exceptions._ArrayMemoryError((2,), np.dtype("f4")),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_type(error):
    assert is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("the layer failed") from error
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("shapes do not match"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        OutOfResources("out of resource: shared memory, Required: 262144, Hardware limit: 232448."),
        RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448."),
        ValueError("the prompt says: out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        RewardError("reward 'url' answered 500 Internal Server Error: out of memory"),
        InputError("out of memory is no prompt"),
    ],
    ids=str,
)
def test_what_is_something_else(error):
    assert not is_out_of_memory(error)
    if error is not None:
        with pytest.raises(type(error)):
            BatchSize(4).run(lambda size: (_ for _ in ()).throw(error))


def test_causes_that_go_in_a_circle_end():
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_allocations_that_really_fail():
    """Of the sizes that each asks for, the machine has the last."""
    for most, make in (
        (8, lambda rows: torch.empty(rows << 58, dtype=torch.uint8)),
        (8, lambda rows: torch.zeros(rows << 58)),
        (8, lambda rows: bytearray(rows << 58)),
        (8, lambda rows: np.zeros(rows << 55)),
    ):
        sizes = []

        def work(size, make=make, sizes=sizes):
            sizes.append(size)
            if size > 1:
                make(size)
            return size

        assert BatchSize(most).run(work) == 1 and sizes == [8, 4, 2, 1]


LIMITED = """
import resource
import torch
from pgraft_fast.finetune.memory import BatchSize
size = BatchSize(64, "training")
def work(rows):
    return float(torch.ones(rows, 1 << 22).sum())
work(1)
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (room + 15 * (1 << 24), resource.RLIM_INFINITY))
total = size.run(work)
print(size.value, total)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS") or sys.platform != "linux", reason="no limit of a process")
def test_a_process_whose_memory_ends():
    """Room for fifteen rows of 16 MiB, less what the process takes besides: eight fit."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", str(float(8 << 22))]
    assert "training: out of memory, goes on with 8 rows at once" in done.stderr
