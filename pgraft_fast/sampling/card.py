"""A GPU's memory, and how many rows of some work go into a share of it."""

import math
from collections.abc import Callable
from functools import partial

import torch

from pgraft_fast.errors import is_out_of_memory
from pgraft_fast.sampling.timing import median_time

# A row must get cheaper by this share, or twice as many at once are not worth their memory.
_LEAST_GAIN = 0.05


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU that no process has; what torch keeps for tensors to come is given back first. Elsewhere inf."""
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


class Card:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> float:
        """See `free_memory`."""
        return free_memory(self.device)

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes that work() takes at most, beside what is there."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before

    def seconds(self, work: Callable[[], object]) -> float:
        """Median wall seconds of work()."""
        return median_time(work, self.device)[0]


def rows_that_fit(
    work: Callable[[int], object], most: int, allowed: float, card: Card, *, while_cheaper: bool = True
) -> int:
    """How many rows at once, of 1, 2, 4, ... and `most`: the last for which work(rows) takes no more than `allowed`
    bytes and, with while_cheaper, a row costs less time than with half of them. 0 where not one fits.
    """
    chosen, peak_of_chosen, cheapest, rows = 0, 0, math.inf, 1
    while True:
        try:
            peak = card.peak(partial(work, rows))
            if peak > allowed:
                return chosen
            each = card.seconds(partial(work, rows)) / rows if while_cheaper else 0.0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return chosen
        if while_cheaper and each > (1.0 - _LEAST_GAIN) * cheapest:
            return chosen
        slope = (peak - peak_of_chosen) / (rows - chosen) if chosen else 0.0
        chosen, peak_of_chosen, cheapest = rows, peak, each
        rows = min(2 * chosen, most)
        if rows == chosen or peak + slope * (rows - chosen) > allowed:
            return chosen
