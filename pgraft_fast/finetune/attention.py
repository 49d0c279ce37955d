"""Attention in training: cuDNN's is left out, whose gradients cannot be trusted.

On Hopper torch takes cuDNN's attention for 16 bits. Its backward pass reads memory that nobody has written where all
scores of a query are far below 0: a tiny Flux in bfloat16 on an H200, torch 2.11, had gradients that are not finite in
27 of 27 runs, others in each call, and in none of 672 steps with flash or plain attention
(https://github.com/pytorch/pytorch/issues/196678). What samples keeps it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda

_lock = threading.Lock()
# Trainings that are under way, in threads for one.
_inside: list[bool] = []


@contextmanager
def trusted_attention() -> Iterator[None]:
    """Without cuDNN's attention, unless it alone is allowed. For the whole process: torch has one switch."""
    with _lock:
        _inside.append(cuda.cudnn_sdp_enabled())
        if cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled():
            cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        with _lock:
            # What the first has found.
            before = _inside[0]
            _inside.pop()
            if not _inside:
                cuda.enable_cudnn_sdp(before)
