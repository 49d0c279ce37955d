"""What a pipeline's loop does with a state and a time, found by value in a few iterations; nothing is told by names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.loop import NetCall
from pgraft_fast.pipelines.rules import (
    CallRule,
    Constant,
    Explanation,
    Listed,
    Part,
    Time,
    Whole,
    answer_of,
    leaves_of,
)

# Of a sum of answers, as a share of the output: rounding of its own operations.
_RESIDUAL = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 0.03}
# As it is, of 1,000, 1 or 1,000 less that: (divisor, less from).
_TIMES = ((1.0, None), (1000.0, None), (1000.0, 1.0), (1.0, 1000.0), (1e-3, None))


class NotExplainedError(Exception):
    """Why a loop is left to itself."""


@dataclass(frozen=True)
class Iteration:
    """x: (n, *shape) states, as the pipeline has them; t: the timestep; out: what scheduler.step got."""

    x: Tensor
    t: Tensor
    calls: tuple[NetCall, ...]
    out: Tensor


@dataclass(frozen=True)
class _Values:
    """An argument in the iterations of one sample, and in those of several. what: its name, for messages."""

    one: list[Any]
    several: list[Any]
    iterations: tuple[Sequence[Iteration], Sequence[Iteration]]
    what: str

    def part(self, key: Any) -> "_Values":
        """What is found under a key, or at a place."""
        one, several = ([value[key] for value in side] for side in (self.one, self.several))
        return _Values(one, several, self.iterations, f"{self.what} {key}")

    @property
    def n(self) -> int:
        """Samples of the several."""
        return self.iterations[1][0].x.shape[0] // self.iterations[0][0].x.shape[0]

    def pairs(self) -> list[tuple[Any, Iteration]]:
        """Each value with its iteration."""
        sides = zip((self.one, self.several), self.iterations, strict=True)
        return [pair for values, iterations in sides for pair in zip(values, iterations, strict=True)]


def explained(one: Sequence[Iteration], several: Sequence[Iteration]) -> Explanation:
    """From iterations of one sample and of several. Raises NotExplainedError."""
    names = [call.net for call in one[0].calls]
    if any([call.net for call in iteration.calls] != names for iteration in (*one, *several)):
        raise NotExplainedError("its calls of networks change")
    if len(set(names)) != 1:
        raise NotExplainedError(f"it calls {', '.join(dict.fromkeys(names)) or 'no network'}")
    rules = tuple(_call_rule(number, one, several) for number in range(len(names)))
    return _explanation(rules, [*one, *several])


def _call_rule(number: int, one: Sequence[Iteration], several: Sequence[Iteration]) -> CallRule:
    calls = [[iteration.calls[number] for iteration in side] for side in (one, several)]
    if len({(len(call.args), *call.kwargs) for side in calls for call in side}) != 1:
        raise NotExplainedError("its arguments change")
    args = _Values([c.args for c in calls[0]], [c.args for c in calls[1]], (one, several), "argument")
    kwargs = _Values([c.kwargs for c in calls[0]], [c.kwargs for c in calls[1]], (one, several), "argument")
    found = _rule(args), _rule(kwargs)
    states = [leaf for leaf in leaves_of(found) if isinstance(leaf, Whole) or (isinstance(leaf, Listed) and leaf.state)]
    if len(states) != 1:
        raise NotExplainedError(f"{len(states)} arguments hold the state")
    return CallRule(*found, _part(states[0], one[0].x, one[0].calls[number].out))


def _rule(values: _Values) -> Any:
    a, b = values.one[0], values.several[0]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _rule(values.part(key)) for key in a}
    if isinstance(a, list) and isinstance(b, list) and a and len(b) == values.n * len(a) > len(a):
        return _listed(values)
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_rule(values.part(place)) for place in range(len(a)))
    if all(_same(v, a) for v in values.one) and all(_same(v, b) for v in values.several):
        return _constant(a, b, values)
    found = _whole(values) or _time(values)
    if found is None:
        raise NotExplainedError(f"{values.what} is neither the state, nor a function of the time")
    return found


def _listed(values: _Values) -> Listed:
    first = values.one[0]
    rows = [(value, i.x[row % len(i.x)]) for listed, i in values.pairs() for row, value in enumerate(listed)]
    if all(isinstance(v, Tensor) and v.numel() == x.numel() and _equal(v.flatten(), x.flatten()) for v, x in rows):
        return Listed(len(first), True, first[0].dtype, tuple(first[0].shape))
    for listed, i in values.pairs():
        if not all(_same(value, first[row // len(i.x)]) for row, value in enumerate(listed)):
            raise NotExplainedError(f"{values.what} changes, or differs between samples of one prompt")
    return Listed(len(first), False)


def _constant(a: Any, b: Any, values: _Values) -> Constant:
    if _same(a, b):
        return Constant()
    rows = isinstance(a, Tensor) and a.ndim > 0 and b.shape == (values.n * a.shape[0], *a.shape[1:])
    # Encoded for one sample and for two: rounding.
    if rows and torch.allclose(b.float(), a.repeat_interleave(values.n, dim=0).float(), rtol=1e-4, atol=1e-5):
        return Constant(a.shape[0])
    raise NotExplainedError(f"{values.what} differs between samples of one prompt")


def _whole(values: _Values) -> Whole | None:
    found: set[Whole] = set()
    tails: dict[int, Tensor] = {}
    for v, i in values.pairs():
        if not isinstance(v, Tensor) or not v.is_floating_point() or v.ndim != i.x.ndim or v.shape[0] % len(i.x):
            return None
        wider = [dim for dim in range(1, v.ndim) if v.shape[dim] != i.x.shape[dim]]
        if len(wider) > 1 or any(v.shape[dim] < i.x.shape[dim] for dim in wider):
            return None
        dim = wider[0] if wider else None
        rule = Whole(v.shape[0] // len(i.x), v.dtype, dim, 0 if dim is None else v.shape[dim] - i.x.shape[dim])
        head = v if dim is None else v.narrow(dim, 0, i.x.shape[dim])
        if not torch.equal(head, rule.laid(i.x)):
            return None
        if dim is not None and not torch.equal(rule.tail(v), tails.setdefault(len(i.x), rule.tail(v))):
            return None
        found.add(rule)
    return found.pop() if len(found) == 1 else None


def _time(values: _Values) -> Time | None:
    a, b = values.one[0], values.several[0]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype is torch.bool:
        return None
    rows, extra = 0, tuple(a.shape)
    if a.ndim and a.shape != b.shape:
        rows, extra = a.shape[0] // len(values.iterations[0][0].x), tuple(a.shape[1:])
        if rows == 0 or b.shape != (values.n * a.shape[0], *extra):
            return None
    # The dtype in which it is worked out shows in its rounding.
    for divisor, less_from in _TIMES:
        for first in (True, False):
            rule = Time(divisor, less_from, a.dtype, first, rows, extra)
            if all(torch.equal(v, rule.of(i.t.to(v.device)).expand_as(v)) for v, i in values.pairs()):
                return rule
    return None


def _part(state: Whole | Listed, x: Tensor, out: Any) -> Part:
    found, copies = answer_of(out), state.copies
    if isinstance(found, list) or isinstance(state, Listed) or found.numel() == copies * x.numel():
        return Part(copies)
    wider = [dim for dim in range(1, min(found.ndim, x.ndim)) if found.shape[dim] != x.shape[dim]]
    if found.ndim != x.ndim or found.shape[0] != copies * len(x) or len(wider) != 1:
        raise NotExplainedError("its answer has another shape than the state")
    return Part(copies, wider[0], x.shape[wider[0]])


def _explanation(rules: tuple[CallRule, ...], iterations: Sequence[Iteration]) -> Explanation:
    """By least squares; of guidance by a scale of few digits, where that is no worse."""
    dtype = iterations[0].out.dtype
    parts = [[p for r, c in zip(rules, i.calls, strict=True) for p in r.part.of(c.out, i.x)] for i in iterations]
    wanted = torch.cat([i.out.double().flatten() for i in iterations])
    columns = torch.cat([torch.stack([one.double().flatten() for one in of_one], dim=1) for of_one in parts])
    fitted = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0].tolist()

    def off(made: Explanation) -> float:
        found = torch.cat([made.output(of_one).double().flatten() for of_one in parts])
        return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())

    best = Explanation(rules, tuple(fitted), dtype)
    least, total = off(best), round(sum(fitted))
    for digits in range(4) if len(fitted) <= 2 and total in (-1, 1) else ():
        scale = round(fitted[-1], digits)
        rounded = Explanation(rules, (total - scale, scale)[-len(fitted) :], dtype)
        far = off(rounded)
        if far <= 1.5 * least + 1e-7:
            best, least = rounded, far
            break
    # What is not a number is no sum either.
    if not least <= _RESIDUAL.get(dtype, 1e-5):
        raise NotExplainedError(f"its output is no sum of the denoiser's answers (off by {least:.2g})")
    return best


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b.to(a.dtype))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(_same(v, w) for v, w in zip(a, b, strict=True))
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)
