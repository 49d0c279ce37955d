"""The best 4 of 16 in many groups, and the compaction of their rows, against torch.topk, torch.sort and a copy."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.ops import gather_rows, reward_filter, use_backend
from pgraft_fast_benchmarks import gates
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.providers import clone, copy

_KEPT, _OF, _FLOATS = 4, 16, 64


def cases(settings: Settings) -> Iterator[Case]:
    """The rule alone, with its rows, and the rows alone."""
    groups = 8 if settings.small else 65_536
    shape, kept, row = (groups, _OF), groups * _KEPT, 4 * _FLOATS
    chosen = groups * (_OF * 5 + 8) + 8 * kept
    rows = 8 * kept + 2 * kept * row
    yield Case(
        "reward_filter", "top 4", shape, "float32", chosen, partial(_filter, shape),
        best_of={"torch": ("torch.topk", "torch.sort")},
    )  # fmt: skip
    yield Case("reward_filter", "top 4 + gather", shape, "float32", chosen + rows, partial(_filter_gather, shape))
    yield Case("gather_rows", "64 floats", shape, "float32", rows, partial(_gather, shape))


def _rewards(shape: tuple[int, int], settings: Settings) -> Tensor:
    """Without ties, so that everybody must keep the same."""
    generator = torch.Generator().manual_seed(2)
    return torch.randperm(shape[0] * shape[1], generator=generator).view(shape).to(settings.device, torch.float32)


def _filter(shape: tuple[int, int], settings: Settings) -> Sequence[Provider]:
    rewards = _rewards(shape, settings)
    first = torch.arange(0, rewards.numel(), _OF, device=rewards.device)[:, None]

    def work() -> list[Tensor]:
        kept = reward_filter(rewards, "top_k", k=_KEPT)
        return [kept.packed, kept.mask, kept.group_count, kept.count]

    def topk() -> Tensor:
        return torch.topk(rewards, _KEPT).indices

    def sort() -> Tensor:
        return torch.sort(rewards, dim=1, descending=True).indices[:, :_KEPT]

    def kept_by(run: Callable[[], Tensor]) -> Callable[[], str | None]:
        """The same candidates, whatever their order in a group."""
        return lambda: gates.same([(run() + first).sort(dim=1).values.flatten()], gates.reference(work, {})[:1])

    providers = [
        Provider("ours", work, lambda: gates.same(work(), gates.reference(work, {})), backend=settings.backend),
        Provider("torch.topk", topk, kept_by(topk)),
        Provider("torch.sort", sort, kept_by(sort)),
        Provider("eager", work, kept_by(topk), backend="reference"),
        copy(rewards),
    ]
    return providers if settings.device.type != "cuda" else [*providers, _captured(rewards, work, settings)]


def _captured(rewards: Tensor, work: Callable[[], list[Tensor]], settings: Settings) -> Provider:
    """The call as a CUDA graph, whose replay must see new rewards."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with use_backend(settings.backend):
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            captured = work()

    def gate() -> str | None:
        rewards.copy_(rewards.flip(0, 1).roll(1))
        graph.replay()
        return gates.same(captured, work())

    return Provider("ours.graph", graph.replay, gate, backend=settings.backend)


def _states(shape: tuple[int, int], settings: Settings) -> Tensor:
    generator = torch.Generator(settings.device).manual_seed(3)
    return torch.randn(shape[0] * shape[1], _FLOATS, generator=generator, device=settings.device)


def _filter_gather(shape: tuple[int, int], settings: Settings) -> Sequence[Provider]:
    rewards, states = _rewards(shape, settings), _states(shape, settings)
    first = torch.arange(0, rewards.numel(), _OF, device=rewards.device)[:, None]

    def work() -> list[Tensor]:
        return [gather_rows(reward_filter(rewards, "top_k", k=_KEPT).packed, states)[0]]

    def by_torch() -> list[Tensor]:
        return [states.index_select(0, (torch.topk(rewards, _KEPT).indices + first).flatten())]

    def torch_gate() -> str | None:
        """Sums over a group, which do not depend on the order in it."""
        sums, expected = (x.view(shape[0], _KEPT, _FLOATS).double().sum(dim=1) for x in (by_torch()[0], kept))
        return gates.near([sums], [expected], 1e-12)

    kept = gates.reference(work, {})[0]
    return [
        Provider("ours", work, lambda: gates.same(work(), [kept]), backend=settings.backend),
        Provider("torch", by_torch, torch_gate),
        clone(kept),
        copy(kept, "copy_preallocated"),
    ]


def _gather(shape: tuple[int, int], settings: Settings) -> Sequence[Provider]:
    states = _states(shape, settings)
    index = reward_filter(_rewards(shape, settings), "top_k", k=_KEPT).packed

    def work() -> list[Tensor]:
        return [gather_rows(index, states)[0]]

    def by_torch() -> list[Tensor]:
        return [states.index_select(0, index)]

    kept = by_torch()[0]
    return [
        Provider("ours", work, lambda: gates.same(work(), [kept]), backend=settings.backend),
        Provider("torch", by_torch, lambda: gates.same(by_torch(), [states[index]])),
        Provider("eager", work, lambda: gates.same(work(), [kept]), backend="reference"),
        clone(kept),
        copy(kept, "copy_preallocated"),
    ]
