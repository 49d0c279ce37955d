"""The open loops of a pipeline, by prompt: outputs, first states and media of any rows."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.loop import Loop, NotServedError

# Conditioning of so many calls stays on the device.
OPEN = 64


@dataclass(frozen=True)
class State:
    """How states of n samples lie in the pipeline's: shape of one sample; `copies` of all of them, one behind the
    other. dtype, device: of the pipeline's. time: dtype in which times are given.
    """

    shape: tuple[int, ...]
    copies: int
    dtype: torch.dtype
    device: torch.device
    time: torch.dtype

    @classmethod
    def of(cls, loop: Loop, rows: int, time: torch.dtype | None = None) -> "State":
        """As a loop of so many samples starts. Raises NotServedError."""
        x, t = loop.start, loop.start_time
        assert t is not None
        copies = x.shape[0] // rows
        if x.shape[0] != max(1, copies) * rows or not torch.equal(x, x[:rows].repeat(copies, *[1] * (x.ndim - 1))):
            raise NotServedError(f"a state of shape {tuple(x.shape)} for {rows} samples is not a row a sample")
        return cls(tuple(x.shape[1:]), copies, x.dtype, x.device, torch.float32 if time is None else time)

    def laid(self, x: Tensor) -> Tensor:
        """States (n, *shape) as the pipeline has them."""
        return x.to(self.device, self.dtype).repeat(self.copies, *[1] * (x.ndim - 1))


class Driver:
    """output(x, t, number): what the pipeline's loop makes of the states of samples of one prompt.

    calls: the arguments. nets: see `Loop`. state: known after the first loop. Loops stay open between calls, at most
    `OPEN` of them, each with the conditioning of its prompt.
    """

    def __init__(self, calls: Calls, state: State, nets: dict[str, nn.Module] | None = None) -> None:
        self.calls, self.state, self.nets = calls, state, nets
        self._blanks: dict[Any, Any] = {}
        self._open: OrderedDict[tuple[int, int, int], Loop] = OrderedDict()

    def net(self, name: str) -> nn.Module:
        """What is called under this name."""
        net: nn.Module = (self.nets or {}).get(name) or getattr(self.calls.pipe, name)
        return net

    def output(self, x: Tensor, t: float, number: int, slot: int = 0) -> Tensor:
        """(n, *shape) as x, in its dtype, on its device. t: a timestep of the pipeline's scheduler. slot: of several
        loops of equally many samples of the prompt.
        """
        loop = self._loop(number, x.shape[0], slot)
        try:
            out = loop.output(self.state.laid(x), torch.tensor(t, device=self.state.device).to(self.state.time))
        except BaseException:
            self._drop(loop)
            raise
        return out[: x.shape[0]].to(x)

    def start(self, number: int, seeds: Sequence[int], slot: int = 0) -> Tensor:
        """(n, *shape): first states as the pipeline prepares them, each from the noise of its seed."""
        loop = self._opened(number, len(seeds), slot, seeds)
        return loop.start[: len(seeds)]

    def finish(self, x: Tensor, number: int) -> Any:
        """What the pipeline's call returns for final states x (n, *shape) of a prompt."""
        loop = self._loop(number, x.shape[0], 0)
        self._open.pop((number, x.shape[0], 0))
        return loop.finish(self.state.laid(x))

    def close(self) -> None:
        """Leave all calls."""
        while self._open:
            self._open.popitem()[1].close()

    def _loop(self, number: int, rows: int, slot: int) -> Loop:
        key = (number, rows, slot)
        loop = self._open.get(key)
        if loop is None or loop.left == 0:
            return self._opened(number, rows, slot, seeds_of(0, range(rows)))
        self._open.move_to_end(key)
        return loop

    def _opened(self, number: int, rows: int, slot: int, seeds: Sequence[int]) -> Loop:
        key = (number, rows, slot)
        if key in self._open:
            self._open.pop(key).close()
        while len(self._open) >= OPEN:
            self._open.popitem(last=False)[1].close()
        calls = self.calls
        loop = self._open[key] = Loop(calls.pipe, calls.of(number, rows, seeds), nets=self.nets, blanks=self._blanks)
        return loop

    def _drop(self, loop: Loop) -> None:
        for key, other in list(self._open.items()):
            if other is loop:
                self._open.pop(key).close()


def opened(calls: Calls, number: int, rows: int) -> tuple[Calls, Loop]:
    """A first loop, of as many iterations as the pipeline makes; with the arguments that it was opened with."""
    try:
        return calls, Loop(calls.pipe, calls.of(number, rows, seeds_of(0, range(rows))))
    except NotServedError:
        raise
    except (ValueError, IndexError):
        calls = replace(calls, long=calls.steps)
        return calls, Loop(calls.pipe, calls.of(number, rows, seeds_of(0, range(rows))))
