"""Holding a backend's result to the reference: the two-rule tolerance, and what every operation must pass."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pgraft_fast.ops import use_backend

FAST = ("cpp", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Inputs = dict[str, Tensor]
Run = Callable[..., Sequence[Tensor]]


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN, and the largest number for integers: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def hold(run: Run, inputs: Inputs, backend: str) -> Sequence[Tensor]:
    """run(**inputs) on a backend against the reference in the same dtypes and in float64. Returns the backend's."""
    with use_backend(backend), poisoned():
        got = run(**inputs)
    with use_backend("reference"):
        eager = run(**inputs)
        exact = run(**{name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})
    assert len(got) == len(eager) == len(exact)
    for k, e, x in zip(got, eager, exact, strict=True):
        assert (k.shape, k.dtype, k.device, k.stride()) == (e.shape, e.dtype, e.device, e.stride())
        if k.dtype.is_floating_point:
            within(k, e, x, truncates=backend == "triton" and k.dtype is torch.bfloat16)
        else:
            assert torch.equal(k, e)
    return got


def within(got: Tensor, eager: Tensor, exact: Tensor, truncates: bool = False) -> None:
    """max|k - x| <= 2 max|e - x| + 2 eps max|x|, and rms(k - x) <= 1.2 rms(e - x) + 0.1 eps rms(x).

    truncates: the Triton interpreter's store to bfloat16 may lose one unit in the last place more.
    """
    eps = torch.finfo(got.dtype).eps
    assert torch.equal(got.isfinite(), exact.isfinite())
    got, eager, exact = (value.double().nan_to_num(posinf=0.0, neginf=0.0) for value in (got, eager, exact))
    if exact.numel() == 0:
        return
    k, e = got - exact, eager - exact
    assert largest(k) <= 2 * largest(e) + 2 * eps * largest(exact)
    # Of a few values the reference may hit every one; correct rounding is then half a unit off.
    slack = 0.1 if exact.numel() >= 64 else 0.5
    if not truncates:
        assert rms(k) <= 1.2 * rms(e) + slack * eps * rms(exact)


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def check_operator(run: Callable[..., object], op: object, arguments: Sequence[tuple[object, ...]]) -> None:
    """The registered operator passes opcheck; `run`, compiled whole, serves all arguments without a recompile.

    arguments: those of the operator, of equal shapes and options.
    """
    for args in arguments:
        torch.library.opcheck(op, args)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.compiler.set_stance("default"), torch._dynamo.config.patch(error_on_recompile=True):
        for args in arguments:
            for got, wanted in itertools.zip_longest(_flat(compiled(*args)), _flat(run(*args))):
                assert torch.equal(got, wanted)


def _flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for x in value if x is not None] if isinstance(value, tuple) else []
