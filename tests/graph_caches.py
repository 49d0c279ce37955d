"""Graph caches without CUDA, and a tape of torch's operations that stands for what CUDA captures.

A tape is as dead as a captured graph: no Python of the model runs at a replay, every result is written to where it lay
at the capture, and whatever is no input is read where it lay then.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pgraft_fast.sampling.graphs import Captured, GraphCache


class OtherCache(GraphCache):
    """Captured in another way, on any device: capture(function, inputs, generators)."""

    def __init__(self, capture: Callable[..., Captured], memory_limit: int | None = None) -> None:
        super().__init__(memory_limit)
        self.other = capture

    def captures(self, device):
        return True

    def _capture(self, function, inputs, generators, compiled):
        return self.other(function, inputs, generators)


class Tape(TorchDispatchMode):
    """Records operations with their results."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Numbers of a schedule are double, and on the host in earnest, too.
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is not torch.float64:
            raise AssertionError("a value is read back")
        out = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.made:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def loop(self, condition, body, limit, *, pool=None):
        """`device_while` on this tape: what a replay repeats is the body as it was taped, as often as its data ask."""
        count, part = torch.zeros((), dtype=torch.int32), Tape()
        # Not by the tape around it.
        with _disable_current_modes(), part:
            body()

        def run():
            count.zero_()
            while int(condition) != 0 and int(count) < limit:
                part.replay()
                count.add_(1)

        self.made.append((run, (), {}, None))
        return count


def taped(function, inputs, generators):
    """Captures on a tape; the default generator is left as it was."""
    state, buffers, tape = torch.get_rng_state(), [value.clone() for value in inputs], Tape()
    function([value.clone() for value in inputs], [])
    with tape:
        outputs = function(buffers, [])
    torch.set_rng_state(state)
    return Captured(SimpleNamespace(replay=tape.replay), buffers, outputs, [], 1)
