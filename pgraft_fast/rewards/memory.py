"""Batches of a reward that fit into memory."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pgraft_fast.errors import RewardError, is_out_of_memory

_LOG = logging.getLogger("pgraft_fast.rewards")


def in_parts(ask: Callable[[slice], Tensor], count: int, size: int, what: str) -> tuple[list[Tensor], int]:
    """ask(rows) for count rows, `size` at once, and the size that fits: halved for as long as memory runs out.

    Raises what `ask` raises, where it is something else, or memory is too small for one row.
    """
    parts: list[Tensor] = []
    low = 0
    while low < count:
        high = min(low + size, count)
        try:
            parts.append(ask(slice(low, high)))
            low = high
            continue
        except RewardError as error:
            if high - low == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler: the error's frames hold tensors.
        size = (high - low) // 2
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        _LOG.warning("reward %r: out of memory, goes on with %d samples at once", what, size)
    return parts, size
