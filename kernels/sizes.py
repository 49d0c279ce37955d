"""Sizes of blocks and grids in plain Python: Triton's own functions take two microseconds a call on the host."""


def ceil_div(total, part):
    """How many parts cover the total."""
    return -(-total // part)


def power_above(n):
    """The least power of two that is not below n; 1 for n = 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 1


def block_of(size, most):
    """Block for a sample of `size` values: a power of two from 32 to `most`."""
    return min(most, max(32, power_above(size)))
