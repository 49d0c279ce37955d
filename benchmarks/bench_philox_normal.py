"""philox_normal against torch.randn."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.ops import philox_normal
from pgraft_fast_benchmarks import gates
from pgraft_fast_benchmarks.harness import Case, Provider, Settings

_SEED, _SAMPLES = 5, 10


def cases(settings: Settings) -> Iterator[Case]:
    """Ten million numbers, in two dtypes."""
    n = 1000 if settings.small else 10**7
    for dtype in (torch.float32, torch.bfloat16):
        yield Case(
            "philox_normal", "noise", (n,), str(dtype).removeprefix("torch."), n * dtype.itemsize,
            partial(_providers, n, dtype),
        )  # fmt: skip


def _providers(n: int, dtype: torch.dtype, settings: Settings) -> Sequence[Provider]:
    ids = torch.arange(_SAMPLES, device=settings.device)
    step = torch.tensor(7, device=settings.device)
    generator = torch.Generator(settings.device).manual_seed(_SEED)

    def work() -> list[Tensor]:
        return [philox_normal(_SEED, ids, step, n // _SAMPLES, dtype)]

    def by_torch() -> list[Tensor]:
        return [torch.randn(n, generator=generator, device=settings.device, dtype=dtype)]

    return [
        Provider("ours", work, lambda: gates.same(work(), gates.reference(work, {})), backend=settings.backend),
        Provider("torch", by_torch, lambda: gates.standard_normal(by_torch()[0])),
        Provider("eager", work, lambda: gates.standard_normal(work()[0]), backend="reference"),
    ]
