"""What the ranks of a run tell each other: rows, sums, decisions and errors."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgraft_fast.errors import PgraftError, RankError, StoppedError
from pgraft_fast.ranks.lifeline import Lifeline
from pgraft_fast.ranks.turns import Turns

T = TypeVar("T")
# Elements that are summed in one message.
_BUCKET = 1 << 24


class Ranks:
    """One process of several; every method but `part`, `bounds`, `counts` and `check` is called by all in one order.

    rank, size: which of how many. waited: seconds that this one has waited for others. lifeline: tells of failures
    while others are at work; None for a process alone, for which all of this does nothing. turns: of networks that the
    ranks share; None where each has its own.
    """

    def __init__(self, rank: int = 0, size: int = 1, lifeline: Lifeline | None = None) -> None:
        self.rank, self.size, self.waited = rank, size, 0.0
        self._lifeline = lifeline
        self.turns: Turns | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def bounds(self, total: int, unit: int = 1) -> list[tuple[int, int]]:
        """[low, high) of each rank's share of `total` rows, whole units, which differ by one unit at most."""
        units = -(-total // unit)
        edges = [min(total, units * rank // self.size * unit) for rank in range(self.size + 1)]
        return list(itertools.pairwise(edges))

    def part(self, total: int, unit: int = 1) -> tuple[int, int]:
        """This rank's of `bounds`."""
        return self.bounds(total, unit)[self.rank]

    def counts(self, total: int, unit: int = 1) -> list[int]:
        """Rows of each rank's share, see `bounds`."""
        return [high - low for low, high in self.bounds(total, unit)]

    def check(self) -> None:
        """Raise RankError where another rank has failed; called between batches."""
        failure = None if self._lifeline is None else self._lifeline.failure
        if failure is not None:
            raise RankError(failure)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block of a rank's own work, without a word to others: where it raises on one rank, it does so on all."""
        if self.size == 1:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:
            error = caught
            if self._lifeline is not None and not isinstance(caught, RankError):
                self._lifeline.tell(f"rank {self.rank}: {_line(caught)}")
        self.agree(error)

    def unequal(self) -> AbstractContextManager[None]:
        """A block in which the ranks may call networks that they share unequally often, without gradients."""
        return nullcontext() if self.turns is None else self.turns.open()

    def agree(self, error: BaseException | None) -> None:
        """Raise what any rank has met, on all of them: its own where it met it, the same kind with its rank's number
        elsewhere.
        """
        mine = None if error is None else [type(error).__name__, _line(error), isinstance(error, RankError)]
        met = [(rank, *entry) for rank, entry in enumerate(self.gather(mine)) if entry is not None]
        if not met:
            return
        if self._lifeline is not None:
            self._lifeline.settle()
        # What was only heard of, or was asked of all, comes last.
        met.sort(key=lambda entry: (entry[3], entry[1] == StoppedError.__name__, entry[0]))
        rank, kind, text, _ = met[0]
        if error is not None and rank == self.rank and not isinstance(error, PgraftError):
            raise error
        known = _kinds(PgraftError).get(kind, RankError)
        raise known(text if kind in (StoppedError.__name__, RankError.__name__) else f"rank {rank}: {text}") from error

    def once(self, work: Callable[[], object]) -> None:
        """work() on the first rank, for all of them; where it raises, it does so on all."""
        with self.together():
            if self.first:
                work()

    def from_first(self, work: Callable[[], T]) -> T:
        """What work() makes on the first rank, JSON, on all; where it raises, it does so on all."""
        if self.size == 1:
            return work()
        value: Any = None
        with self.together(), self.unequal():
            if self.first:
                value = work()
        return self.gather(value if self.first else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """JSON of every rank, in their order."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._gathered(torch.tensor([text.numel()]))
        sizes = [int(length) for length in lengths]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: text.numel()] = text
        parts = self._gathered(padded)
        return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def rows(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """(sum of counts, ...) the rows of all ranks, in their order; counts: how many each has."""
        if self.size == 1:
            return own
        # As bytes: no backend knows all dtypes.
        width = own[:1].numel() * own.element_size() if own.shape[0] else 0
        flat = own.detach().contiguous().reshape(-1).view(torch.uint8)
        width = max(int(value) for value in self._gathered(torch.tensor([width])))
        padded = flat.new_zeros(max(counts) * width)
        padded[: flat.numel()] = flat
        parts = [part[: count * width] for part, count in zip(self._gathered(padded), counts, strict=True)]
        return torch.cat(parts).view(own.dtype).view(sum(counts), *own.shape[1:])

    def tensors_from_first(self, tensors: Mapping[str, Mapping[str, Tensor]] | None) -> dict[str, dict[str, Tensor]]:
        """Groups of named tensors on the CPU, those of the first rank on all; None on the others."""
        if self.size == 1:
            assert tensors is not None
            return {group: dict(named) for group, named in tensors.items()}
        own = tensors or {}
        listed: dict[str, dict[str, Any]] = self.from_first(
            lambda: {group: {name: _kind(value) for name, value in named.items()} for group, named in own.items()}
        )
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in listed}
        for group, named in listed.items():
            for name, (dtype, shape) in named.items():
                value = torch.empty(shape, dtype=getattr(torch, dtype))
                if self.first:
                    value = own[group][name].detach().cpu().contiguous()
                with self._waiting():
                    dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
                groups[group][name] = value
        return groups

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum over all ranks, in place, in float32 or wider; the same bits everywhere."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            wide = torch.float64 if any(value.dtype is torch.float64 for value in bucket) else torch.float32
            flat = torch.cat([value.detach().reshape(-1).to(wide) for value in bucket])
            flat = self._summed(flat)
            for value, part in zip(bucket, flat.split([value.numel() for value in bucket]), strict=True):
                value.detach().copy_(part.view_as(value))

    def all_of(self, flat: Tensor) -> list[Tensor]:
        """(n,) of every rank, all equally long."""
        return [flat] if self.size == 1 else self._gathered(flat.detach().contiguous())

    def check_equal(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raise RankError where these are not the same bits on all ranks."""
        if self.size == 1:
            return
        sums = [int(value.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)) for value in tensors]
        others = self.gather(sums)
        different = [rank for rank, other in enumerate(others) if other != others[0]]
        if different:
            raise RankError(
                f"{what} of rank {different[0]} differ from those of rank 0: the machines do not compute alike"
            )

    def _summed(self, flat: Tensor) -> Tensor:
        on_host = flat.device.type != "cpu" and not _speaks(flat.device)
        moved = flat.cpu() if on_host else flat
        with self._waiting():
            dist.all_reduce(moved)
        return moved.to(flat.device) if on_host else moved

    def _gathered(self, value: Tensor) -> list[Tensor]:
        on_host = value.device.type != "cpu" and not _speaks(value.device)
        moved = value.cpu() if on_host else value
        parts = [torch.empty_like(moved) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(parts, moved)
        return [part.to(value.device) for part in parts] if on_host else parts

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        if self._lifeline is not None:
            self._lifeline.passed += 1
        try:
            yield
        except RuntimeError as error:
            raise RankError(self._lost(error)) from error
        finally:
            self.waited += time.perf_counter() - began

    def _lost(self, error: RuntimeError) -> str:
        late = [] if self._lifeline is None else self._lifeline.behind()
        if self._lifeline is not None and self._lifeline.failure is not None:
            return self._lifeline.failure
        who = f"rank {late[0]}" if late else "another rank"
        if "by peer" in str(error):
            return f"{who} is gone: its connection to rank {self.rank} has ended"
        return f"{who} did not come to where rank {self.rank} waited for it ({_line(error)})"


ALONE = Ranks()


def _speaks(device: torch.device) -> bool:
    """Whether the ranks exchange tensors of this device as they are."""
    return "nccl" in str(dist.get_backend_config()) and device.type == "cuda"


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for value in tensors:
        if bucket and (size + value.numel() > _BUCKET or value.device != bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(value)
        size += value.numel()
    if bucket:
        yield bucket


def _kind(value: Tensor) -> list[Any]:
    return [str(value.dtype).removeprefix("torch."), list(value.shape)]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PgraftError) else f"unexpected {type(error).__name__}: {text[:300]}"


def _kinds(base: type[PgraftError]) -> dict[str, type[PgraftError]]:
    kinds = {base.__name__: base}
    for kind in base.__subclasses__():
        kinds |= _kinds(kind)
    return kinds
