"""Unequal numbers of calls of sharded networks, and unequal numbers of rows in training."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pgraft_fast.errors import RankError

# The name under which a sharded network has the whole of its weights for a while.
WHOLE = "_pgraft_fast_whole"
_DONE, _FAILED = -1, -2
_MOST_SECONDS = 1800.0


class Turns:
    """Ranks that call sharded networks as often, and in such an order, as each of them needs.

        turns = Turns()
        turns.add(net, lambda: net(x[:1], t[:1]))
        with turns.open():
            ...    # other numbers of calls, or none, on each rank

    Before a call the ranks tell each other which network each wants. The one that most want is called by all: by the
    others with inputs kept from the call that was made when it was added. A rank that is through goes on so until all
    are. Every method is called by all ranks. blank: calls that this rank has made for others. seconds: for how long one
    waits for another.

    Without gradients. A message before each call takes about as long as a small operation: 0.5 ms by gloo on two busy
    cores.
    """

    def __init__(self, seconds: float = _MOST_SECONDS) -> None:
        self.blank = 0
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self._nets: list[nn.Module] = []
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._hooks: list[Any] = []
        self._open = self._answers = self._known = False

    def add(self, net: nn.Module, call: Callable[[], object]) -> None:
        """A network, of which call() makes calls, the same on all ranks and best of one row."""
        if any(net is known for known in self._nets):
            return
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hook = net.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        try:
            with torch.no_grad():
                call()
        finally:
            hook.remove()
        if not seen:
            raise ValueError(f"{type(net).__name__} was not called")
        number = len(self._nets)
        self._nets.append(net)
        self._inputs.append(seen[0])
        self._hooks.append(net.register_forward_pre_hook(lambda *_: self._before(number), prepend=True))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Calls in here may be as many as a rank likes. Where one raises, the others raise RankError at their next call
        or at the end.
        """
        self._open, self._known = True, False
        try:
            yield
            while self._serve(_DONE) is not None:
                pass
        except BaseException:
            if not self._known:
                self._wants(_FAILED)
            raise
        finally:
            self._open = False

    def close(self) -> None:
        """Calls are as they were."""
        for hook in self._hooks:
            hook.remove()
        self._nets.clear()
        self._inputs.clear()

    def _before(self, number: int) -> None:
        if self._open and not self._answers:
            while self._serve(number) != number:
                pass

    def _serve(self, wanted: int) -> int | None:
        """The network whose turn it is, called here where another one is wanted; None where all are done."""
        wants = self._wants(wanted)
        failed = [rank for rank, want in enumerate(wants) if want == _FAILED]
        if failed:
            self._known = True
            raise RankError(f"rank {failed[0]} has failed while it called a sharded network")
        counts = Counter(want for want in wants if want != _DONE)
        if not counts:
            return None
        turn = min(counts, key=lambda number: (-counts[number], number))
        if turn != wanted:
            self._answer(turn)
        return turn

    def _answer(self, number: int) -> None:
        self.blank += 1
        args, kwargs = self._inputs[number]
        self._answers = True
        try:
            with torch.no_grad():
                self._nets[number](*args, **kwargs)
        finally:
            self._answers = False

    def _wants(self, wanted: int) -> list[int]:
        numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(self._group.size())]
        dist.all_gather(numbers, torch.tensor([wanted]), group=self._group)
        return [int(value) for value in numbers]


def even_parts(bounds: Sequence[tuple[int, int]], rank: int, size: int) -> list[tuple[int, int, bool]]:
    """(low, high, counts) of a rank's parts of at most `size` rows, as many as the rank with the most rows has.

    bounds: [low, high) of the rows of each rank. Those that do not count are one row whose loss is to be times 0: a
    sharded network's backward pass is made by all ranks, too. Raises ValueError where no rank has a row.
    """
    most = max(-(-(high - low) // size) for low, high in bounds)
    if most == 0:
        raise ValueError("no rank has a row")
    low, high = bounds[rank]
    parts = [(start, min(start + size, high), True) for start in range(low, high, size)]
    spare = low if low < high else next(start for start, end in bounds if start < end)
    return parts + [(spare, spare + 1, False)] * (most - len(parts))
