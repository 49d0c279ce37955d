"""Does a reward answer in the order in which it was asked?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROWS = 4
_TOLERANCE = 1e-3


def answers_out_of_order(call: Callable[[Sequence[int]], Tensor], rows: int) -> bool:
    """Whether a reward gives the right numbers to the wrong samples, seen on `rows` samples (at most four are used).

    call(indices) gives the rewards of those samples, asked for together. They are asked for together and one by one:
    alone, a sample can only get its own number. The order is wrong where the two are the same numbers, to 0.1 % of
    the largest, in another order, off by more than 1 % at some sample. A random reward, or one whose numbers depend
    on the batch, gives other numbers, and nothing is claimed.
    """
    index = range(min(rows, ROWS))
    together = call(index).cpu()
    alone = torch.cat([call([i]).cpu() for i in index])
    if not (torch.isfinite(together).all() and torch.isfinite(alone).all()):
        return False
    scale = float(alone.abs().max())
    same = (together.sort().values - alone.sort().values).abs().max() <= _TOLERANCE * scale
    return bool(same) and bool((together - alone).abs().max() > 10 * _TOLERANCE * scale)
