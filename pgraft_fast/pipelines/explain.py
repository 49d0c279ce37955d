"""What a pipeline's loop does with a state and a time, found by value in a few iterations; nothing is told by names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.fitting import Output, fitted
from pgraft_fast.pipelines.loop import NetCall
from pgraft_fast.pipelines.rules import (
    Answer,
    CallRule,
    Constant,
    Explanation,
    Listed,
    Part,
    Time,
    Whole,
    answer_of,
    leaves_of,
    tensors_of,
)
from pgraft_fast.pipelines.trees import same

# As it is, of 1,000, 1 or 1,000 less that: (divisor, less from, divided last).
_TIMES = (
    (1.0, None, False), (1000.0, None, False), (1000.0, 1.0, False), (1.0, 1000.0, False), (1e-3, None, False),
    (1000.0, 1000.0, True),
)  # fmt: skip


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
    """An argument in the iterations of one sample, and in those of several. what: its name, for messages. number: of
    the call that gets it.
    """

    single: list[Any]
    several: list[Any]
    iterations: tuple[Sequence[Iteration], Sequence[Iteration]]
    what: str
    number: int

    def part(self, key: Any) -> "_Values":
        """What is found under a key, or at a place."""
        single, several = ([value[key] for value in side] for side in (self.single, self.several))
        return _Values(single, several, self.iterations, f"{self.what} {key}", self.number)

    @property
    def n(self) -> int:
        """Samples of the several."""
        return self.iterations[1][0].x.shape[0] // self.iterations[0][0].x.shape[0]

    def pairs(self) -> list[tuple[Any, Iteration]]:
        """Each value with its iteration."""
        sides = zip((self.single, self.several), self.iterations, strict=True)
        return [pair for values, iterations in sides for pair in zip(values, iterations, strict=True)]


def explained(single: Sequence[Iteration], several: Sequence[Iteration]) -> Explanation:
    """From iterations of one sample and of several. Raises NotExplainedError."""
    names = [call.net for call in single[0].calls]
    if any([call.net for call in iteration.calls] != names for iteration in (*single, *several)):
        raise NotExplainedError("its calls of networks change")
    if any(call.writes for iteration in (*single, *several) for call in iteration.calls):
        raise NotExplainedError("its networks write into their arguments")
    rules = [_call_rule(number, single, several) for number in range(len(names))]
    taken = {leaf.call for rule in rules for leaf in leaves_of((rule.args, rule.kwargs)) if isinstance(leaf, Answer)}
    rules = [replace(rule, part=None) if number in taken else rule for number, rule in enumerate(rules)]
    if any(rule.part is None and number not in taken for number, rule in enumerate(rules)):
        raise NotExplainedError("its answer has another shape than the state")
    last = {rule.net for rule in rules if rule.part is not None}
    if len(last) != 1:
        raise NotExplainedError(f"it calls {', '.join(dict.fromkeys(names)) or 'no network'}")
    iterations = [*single, *(several if several is not single else ())]
    outputs = [Output(parts_of(rules, i), i.out) for i in iterations]
    explanation, far = fitted(tuple(rules), outputs, iterations[0].out.dtype)
    if explanation is None:
        raise NotExplainedError(f"its output is no sum of the denoiser's answers (off by {far:.2g})")
    return explanation


def parts_of(rules: Sequence[CallRule], iteration: Iteration) -> list[Tensor]:
    """Of the answers in an iteration."""
    pairs = zip(rules, iteration.calls, strict=True)
    return [part for rule, call in pairs if rule.part is not None for part in rule.part.of(call.out, iteration.x)]


def _call_rule(number: int, single: Sequence[Iteration], several: Sequence[Iteration]) -> CallRule:
    calls = [[iteration.calls[number] for iteration in side] for side in (single, several)]
    if len({(len(call.args), *call.kwargs) for side in calls for call in side}) != 1:
        raise NotExplainedError("its arguments change")
    sides = (single, several)
    args = _Values([c.args for c in calls[0]], [c.args for c in calls[1]], sides, "argument", number)
    kwargs = _Values([c.kwargs for c in calls[0]], [c.kwargs for c in calls[1]], sides, "argument", number)
    rules = _rule(args), _rule(kwargs)
    states = [leaf for leaf in leaves_of(rules) if isinstance(leaf, Whole) or (isinstance(leaf, Listed) and leaf.state)]
    if len(states) != 1:
        raise NotExplainedError(f"{len(states)} arguments hold the state")
    net, out = single[0].calls[number].net, single[0].calls[number].out
    empties = any(call.empties for side in calls for call in side)
    return CallRule(net, *rules, _part(states[0], single[0].x, out), empties)


def _rule(values: _Values) -> Any:
    a, b = values.single[0], values.several[0]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _rule(values.part(key)) for key in a}
    if isinstance(a, list) and isinstance(b, list) and a:
        if values.n == 1 and (listed := _listed_states(values)):
            return listed
        if len(b) == values.n * len(a) > len(a):
            return _listed(values)
    if type(a) in (list, tuple) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_rule(values.part(place)) for place in range(len(a)))
    if all(same(v, a) for v in values.single) and all(same(v, b) for v in values.several):
        return _constant(a, b, values)
    rule = _whole(values) or _time(values) or _answer(values)
    if rule is None:
        raise NotExplainedError(f"{values.what} is neither the state, nor a function of the time")
    return rule


def _listed_states(values: _Values) -> Listed | None:
    rows = [(value, i.x[row % len(i.x)]) for listed, i in values.pairs() for row, value in enumerate(listed)]
    if any(len(listed) % len(i.x) for listed, i in values.pairs()):
        return None
    if not all(isinstance(v, Tensor) and v.numel() == x.numel() and _equal(v.flatten(), x.flatten()) for v, x in rows):
        return None
    first = values.single[0]
    return Listed(len(first) // len(values.iterations[0][0].x), True, first[0].dtype, tuple(first[0].shape))


def _listed(values: _Values) -> Listed:
    if states := _listed_states(values):
        return states
    first = values.single[0]
    for listed, i in values.pairs():
        if not all(same(value, first[row // len(i.x)]) for row, value in enumerate(listed)):
            raise NotExplainedError(f"{values.what} changes, or differs between samples of one prompt")
    return Listed(len(first), False)


def _constant(a: Any, b: Any, values: _Values) -> Constant:
    if same(a, b):
        return Constant()
    if isinstance(a, Tensor) and a.ndim == b.ndim:
        wider = [dim for dim in range(a.ndim) if a.shape[dim] != b.shape[dim]]
        if len(wider) == 1 and b.shape[wider[0]] == values.n * a.shape[wider[0]]:
            repeated = a.repeat_interleave(values.n, dim=wider[0])
            # Encoded for one sample and for two: rounding.
            if torch.allclose(b.float(), repeated.float(), rtol=1e-4, atol=1e-5):
                return Constant(a.shape[wider[0]], wider[0])
    raise NotExplainedError(f"{values.what} differs between samples of one prompt")


def _whole(values: _Values) -> Whole | None:
    rules: set[Whole] = set()
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
        rules.add(rule)
    return rules.pop() if len(rules) == 1 else None


def _time(values: _Values) -> Time | None:
    a, b = values.single[0], values.several[0]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype is torch.bool:
        return None
    rows, extra = 0, tuple(a.shape)
    if a.ndim and a.shape != b.shape:
        rows, extra = a.shape[0] // len(values.iterations[0][0].x), tuple(a.shape[1:])
        if rows == 0 or b.shape != (values.n * a.shape[0], *extra):
            return None
    # The dtype in which it is worked out shows in its rounding.
    for divisor, less_from, divided in _TIMES:
        for first in (True, False):
            rule = Time(divisor, less_from, a.dtype, first, rows, extra, divided)
            if all(torch.equal(v, rule.of(i.t.to(v.device)).expand_as(v)) for v, i in values.pairs()):
                return rule
    return None


def _answer(values: _Values) -> Answer | None:
    """Of an earlier call."""
    for call in range(values.number):
        answers = [(v, tensors_of(i.calls[call].out)) for v, i in values.pairs()]
        for place in range(min(len(tensors) for _, tensors in answers)):
            if all(same(v, tensors[place]) for v, tensors in answers):
                return Answer(call, place)
    return None


def _part(state: Whole | Listed, x: Tensor, out: Any) -> Part | None:
    """None where the answer is another thing than an output for the states."""
    answer, copies = answer_of(out), state.copies
    if not isinstance(answer, Tensor) and not (isinstance(answer, list) and all(isinstance(f, Tensor) for f in answer)):
        return None
    if isinstance(answer, list) or isinstance(state, Listed) or answer.numel() == copies * x.numel():
        return Part(copies)
    wider = [dim for dim in range(1, min(answer.ndim, x.ndim)) if answer.shape[dim] != x.shape[dim]]
    if answer.ndim != x.ndim or answer.shape[0] != copies * len(x) or len(wider) != 1:
        return None
    return Part(copies, wider[0], x.shape[wider[0]])


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b.to(a.dtype))
