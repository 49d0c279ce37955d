"""A loop whose length the data decide, on the host or inside a CUDA graph that is being captured."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from pgraft_fast.errors import BackendError, InputError
from pgraft_fast.ops import nvcc
from pgraft_fast.sampling.host_traffic import is_watched

_MAX_DEPTH = 64
_streams: dict[int, list[torch.cuda.Stream]] = {}
_kept: list[torch.cuda.MemPool] = []


def device_while(
    condition: Tensor, body: Callable[[], object], limit: int, *, pool: torch.cuda.MemPool | None = None
) -> Tensor:
    """while condition != 0 and iterations < limit: body().

    While the current stream captures a CUDA graph, the loop becomes a conditional node of it: `body` runs once, to be
    captured, and each replay repeats it as often as its own data ask. Else the host loops and reads the condition; in a
    run that is watched before a capture (`host_traffic`) the body runs once, as in the capture.

    condition: one int32; on the GPU for a loop in a graph. It is read anew at each replay, so set it in the graph.
    body: updates tensors in place, `condition` among them. What it allocates lasts until the iteration ends. In a graph
        it must not synchronise, nor draw from torch's generators, which count draws by the outer capture alone.
    limit: most iterations, 0 ... 2^31 - 1.
    pool: holds what `body` allocates in a graph. Keep it as long as that graph, with no other graph in it; loops that
        follow one another may share it, a loop inside a loop may not. Without one the memory is never freed.

    Returns the number of iterations, () int32 on the device of `condition`; in a graph each replay writes it anew.
    Raises InputError; in a graph also BackendError: no nvcc to build the node with on first use, or CUDA refused it.
    """
    _check(condition, limit, pool)
    if condition.is_cuda:
        with torch.cuda.device(condition.device):
            if torch.cuda.is_current_stream_capturing():
                return _capture(condition, body, limit, pool)
    if is_watched():
        body()
        return torch.ones((), dtype=torch.int32, device=condition.device)
    done = 0
    while done < limit and int(condition) != 0:
        body()
        done += 1
    return torch.tensor(done, dtype=torch.int32, device=condition.device)


def _capture(condition: Tensor, body: Callable[[], object], limit: int, pool: torch.cuda.MemPool | None) -> Tensor:
    library = nvcc.load(condition.device.index)
    outer, inner = torch.cuda.current_stream(), _free_stream()
    count = torch.empty((), dtype=torch.int32, device=condition.device)
    # The body is a capture of its own, to which torch does not apply the pool of the graph: without this one, later
    # eager operations would get the memory that every replay writes to.
    if pool is None:
        pool = torch.cuda.MemPool()
        _kept.append(pool)
    ends = condition.data_ptr(), count.data_ptr(), limit
    handle = ctypes.c_uint64()
    nvcc.check(library, library.pgraft_while_begin(outer.cuda_stream, inner.cuda_stream, *ends, ctypes.byref(handle)))
    try:
        with torch.cuda.use_mem_pool(pool), torch.cuda.stream(inner):
            body()
    finally:
        status = library.pgraft_while_end(inner.cuda_stream, *ends, handle)
    nvcc.check(library, status)
    return count


def _free_stream() -> torch.cuda.Stream:
    """A stream that captures nothing yet: the same one for loops in sequence, so that they share memory."""
    streams = _streams.setdefault(torch.cuda.current_device(), [])
    for depth in range(_MAX_DEPTH):
        if depth == len(streams):
            # torch hands out its streams in turn, so this may be the very one that captures the graph.
            streams.append(torch.cuda.Stream())
        with torch.cuda.stream(streams[depth]):
            if not torch.cuda.is_current_stream_capturing():
                return streams[depth]
    raise BackendError("device_while: every stream is capturing; are loops nested without end?")


def _check(condition: Tensor, limit: int, pool: torch.cuda.MemPool | None) -> None:
    if not isinstance(condition, Tensor):
        raise InputError(f"condition is a {type(condition).__name__}: a tensor of one int32 is needed")
    if condition.dtype is not torch.int32 or condition.numel() != 1:
        raise InputError(f"condition is {condition.dtype} {tuple(condition.shape)}: one torch.int32 is needed")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**31:
        raise InputError(f"limit={limit!r} is not a number of iterations: 0 ... 2^31 - 1 is needed")
    if pool is not None and not isinstance(pool, torch.cuda.MemPool):
        raise InputError(f"pool is a {type(pool).__name__}: a torch.cuda.MemPool is needed")
