"""Floating-point operations, counted and not assumed."""

from collections.abc import Callable


def count_flops(work: Callable[[], object]) -> int:
    """Of one call: matrix products, convolutions and attention, a multiply and an add counted as two."""
    # It imports triton.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
