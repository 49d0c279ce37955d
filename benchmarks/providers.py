"""The providers that operations have in common: ours, the eager reference, a compiled expression, a copy."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast_benchmarks.gates import Inputs, Work, held, near, reference
from pgraft_fast_benchmarks.harness import Provider, Settings


def ours(work: Work, inputs: Inputs, settings: Settings, steps: int = 1) -> Provider:
    """The operation on the chosen backend, held to the float64 reference."""
    return Provider(
        "ours", partial(work, **inputs), lambda: _held(work, inputs), steps=steps, backend=settings.backend
    )  # fmt: skip


def eager(work: Work, inputs: Inputs, steps: int = 1) -> Provider:
    """The operation on the reference backend: plain torch."""
    return plain("eager", partial(work, **inputs), work, inputs, steps=steps, backend="reference")


def plain(
    name: str, run: Callable[[], Sequence[Tensor]], work: Work, inputs: Inputs, tolerance: float | None = None,
    **more: Any,
) -> Provider:  # fmt: skip
    """Another way to the same result, near to the float64 reference."""
    return Provider(name, run, lambda: near(run(), reference(work, inputs, double=True), tolerance), **more)


def compiled(expression: Callable[..., Any]) -> Callable[..., Any]:
    """The expression by torch.compile, which sees each case as its first."""
    torch.compiler.reset()
    return torch.compile(expression, fullgraph=True, dynamic=False)


def copy(x: Tensor, name: str = "copy") -> Provider:
    """x copied into a tensor that is there already: as much as memory can do."""
    y = torch.empty_like(x)
    return Provider(name, lambda: y.copy_(x), lambda: None, bytes=2 * x.nbytes)


def clone(x: Tensor) -> Provider:
    """x copied into a new tensor."""
    return Provider("copy", x.clone, lambda: None, bytes=2 * x.nbytes)


def missing(name: str, error: ImportError) -> Provider:
    """One that is skipped for want of a package."""

    def refuse() -> str | None:
        raise error

    return Provider(name, refuse, refuse, optional=True)


def draw(shape: Sequence[int], settings: Settings, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Normal tensors, the same in every run."""
    generator = torch.Generator(settings.device).manual_seed(1)
    return [
        torch.randn(*shape, generator=generator, device=settings.device).to(dtype)
        for _ in range(count)
    ]  # fmt: skip


def _held(work: Work, inputs: Inputs) -> str | None:
    got = work(**inputs)
    return held(got, reference(work, inputs), reference(work, inputs, double=True))
