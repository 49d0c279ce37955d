"""The denoiser of an explained pipeline, called directly: rows of several prompts and times at once."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.agreement import allowed_of, off
from pgraft_fast.pipelines.calls import seeds_of
from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.explain import Iteration, NotExplainedError, explained
from pgraft_fast.pipelines.grouping import in_order, rows_by
from pgraft_fast.pipelines.loop import Loop, NetCall
from pgraft_fast.pipelines.rules import Constant, Explanation, Listed, Time, Whole

# Prompts whose constants are kept.
_KEPT = 256


class FastLoop:
    """output(x, t, numbers): as the driven loop, for rows of different prompts and times, without the pipeline's loop.

    What a prompt's call gives the denoiser beside state and time is recorded once, in an iteration that computes
    nothing. together: whether prompts at different times go through the denoiser at once; where a check told that rows
    answer otherwise beside others, they go prompt by prompt and time by time.
    """

    def __init__(self, driver: Driver, net: nn.Module, explanation: Explanation, together: bool = False) -> None:
        self.driver, self.net, self.explanation, self.together = driver, net, explanation, together
        self._known: OrderedDict[int, _Constants] = OrderedDict()
        self._blanks: dict[Any, Any] = {}

    @classmethod
    def of(cls, driver: Driver, net: nn.Module, times: Sequence[float]) -> "FastLoop":
        """Watched at these three timesteps, and compared with the driven loop on the first two prompts.

        Raises NotExplainedError, which says what is not understood.
        """
        generator = torch.Generator().manual_seed(0)
        one, several = _iterations(driver, 1, times, generator), _iterations(driver, 2, times[:2], generator)
        found = cls(driver, net, explained(one, several))
        numbers = list(range(min(2, len(driver.calls.prompts))))
        x = torch.randn(len(numbers), *driver.state.shape, generator=generator)
        with torch.no_grad():
            wanted = torch.cat([driver.output(x[n : n + 1], times[n], n) for n in numbers])
            allowed = allowed_of(driver.calls.pipe, driver.state)
            if off(found.output(x, times[: len(numbers)], numbers), wanted) > allowed:
                raise NotExplainedError("called directly, its denoiser answers otherwise")
            together = cls(driver, net, found.explanation, True)
            try:
                agrees = off(together.output(x, times[: len(numbers)], numbers), wanted) <= allowed
            except (RuntimeError, ValueError, TypeError):
                # A denoiser that takes one time for all rows.
                agrees = False
        return together if agrees else found

    def with_net(self, net: nn.Module) -> "FastLoop":
        """The same with another network of the same kind."""
        return FastLoop(self.driver, net, self.explanation, self.together)

    def output(self, x: Tensor, t: Sequence[float], numbers: Sequence[int]) -> Tensor:
        """(n, *shape) as x, in its dtype, on its device. t: the timestep, numbers: the prompt of each row."""
        if self.together:
            groups = rows_by(self._constants(number).key for number in numbers)
        else:
            groups = rows_by(zip(numbers, t, strict=True))
        parts = [
            self._output(x[rows], [t[row] for row in rows], [numbers[row] for row in rows]).to(x)
            for rows in groups.values()
        ]
        return in_order(parts, groups)

    def _constants(self, number: int) -> "_Constants":
        known = self._known.pop(number, None)
        if known is None:
            calls: list[NetCall] = []
            given = self.driver.calls.of(number, 1, seeds_of(0, range(1)))
            Loop(self.driver.calls.pipe, given, nets=self.driver.nets, blanks=self._blanks, watch=calls.append).close()
            known = _Constants(self.explanation, calls)
            if len(self._known) >= _KEPT:
                self._known.popitem(last=False)
        self._known[number] = known
        return known

    def _output(self, x: Tensor, t: Sequence[float], numbers: Sequence[int]) -> Tensor:
        """Of rows that go together."""
        state, constants = self.driver.state, [self._constants(number) for number in numbers]
        laid = state.laid(x)
        # One time for all rows is one number: nothing is read back from a GPU to see that.
        one = len(set(t)) == 1
        times = torch.tensor(t[:1] if one else t, dtype=torch.float64, device=state.device).to(state.time)
        times = times if one else times.repeat(state.copies)
        parts: list[Tensor] = []
        for number, rule in enumerate(self.explanation.calls):
            leaves = iter([*zip(*(one.leaves[number] for one in constants), strict=True)])
            args, kwargs = self._built((rule.args, rule.kwargs), leaves, laid, times)
            parts += rule.part.of(self.net(*args, **kwargs), laid)
        return self.explanation.output(parts)[: x.shape[0]]

    def _built(self, rule: Any, leaves: Iterator[Any], x: Tensor, t: Tensor) -> Any:
        """Arguments by their rules, for rows x with their times."""
        if isinstance(rule, dict):
            return {name: self._built(one, leaves, x, t) for name, one in rule.items()}
        if isinstance(rule, (list, tuple)):
            return type(rule)(self._built(one, leaves, x, t) for one in rule)
        values = next(leaves)
        if isinstance(rule, Whole):
            head = rule.laid(x)
            return head if rule.dim is None else torch.cat((head, _stacked(values, rule.copies)), dim=rule.dim)
        if isinstance(rule, Constant):
            return _stacked(values, rule.rows) if rule.rows else values[0]
        if isinstance(rule, Listed):
            if rule.state:
                return [row.reshape(rule.shape).to(rule.dtype) for _ in range(rule.copies) for row in x]
            return [value[copy] for copy in range(rule.copies) for value in values]
        return _times(rule, t, x.shape[0], self.explanation.calls[0].part.copies)


class _Constants:
    """leaves: for each call of the denoiser, what its rules need of a prompt. Prompts of equal keys go together."""

    def __init__(self, explanation: Explanation, calls: Sequence[NetCall]) -> None:
        if len(calls) != len(explanation.calls):
            raise NotExplainedError("another prompt calls the denoiser another number of times")
        pairs = [
            list(_pairs((rule.args, rule.kwargs), (call.args, call.kwargs)))
            for rule, call in zip(explanation.calls, calls, strict=True)
        ]
        self.leaves = [[value for _, value in of_call] for of_call in pairs]
        self.key = tuple(_key(rule, value) for of_call in pairs for rule, value in of_call)


def _pairs(rule: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(rule, dict):
        for name in rule:
            yield from _pairs(rule[name], value[name])
    elif isinstance(rule, (list, tuple)):
        for one, part in zip(rule, value, strict=True):
            yield from _pairs(one, part)
    elif isinstance(rule, Whole):
        yield rule, None if rule.dim is None else rule.tail(value)
    else:
        yield rule, None if isinstance(rule, Time) else value


def _key(rule: Any, value: Any) -> Any:
    """Equal for what may stand beside each other in a batch; what all rows share must be the very same."""
    if not isinstance(value, Tensor):
        return repr(value) if isinstance(rule, Constant) else None
    rows = isinstance(rule, Whole) or rule.rows > 0
    content = None if rows else hashlib.sha256(value.float().cpu().contiguous().numpy().tobytes()).digest()
    return tuple(value.shape), value.dtype, content


def _stacked(values: Sequence[Tensor], copies: int) -> Tensor:
    """(copies n, ...) from (copies, ...) of each of n samples, all first copies first."""
    each = values[0].shape[0] // copies
    return torch.cat([value[copy * each : (copy + 1) * each] for copy in range(copies) for value in values])


def _times(rule: Time, t: Tensor, n: int, copies: int) -> Tensor:
    """Of n rows with times t (n,), or (1,) for all. A time without rows becomes one with, where they differ."""
    if rule.rows == 0 and len(t) == 1:
        return rule.of(t[0]).expand(rule.extra)
    value = rule.of(t.expand(n)).repeat(rule.rows or copies)
    return value.view(-1, *[1] * len(rule.extra)).expand(-1, *rule.extra) if rule.rows else value


def _iterations(driver: Driver, rows: int, times: Sequence[float], generator: torch.Generator) -> list[Iteration]:
    """At drawn states of the first prompt."""
    state, calls, found = driver.state, list[NetCall](), list[Iteration]()
    given = driver.calls.of(0, rows, seeds_of(0, range(rows)))
    loop = Loop(driver.calls.pipe, given, nets=driver.nets, watch=calls.append)
    try:
        for time in times:
            x = state.laid(torch.randn(rows, *state.shape, generator=generator))
            t = torch.tensor(time, device=state.device).to(state.time)
            calls.clear()
            with torch.no_grad():
                out = loop.output(x, t)
            found.append(Iteration(x, t, tuple(calls), out))
    finally:
        loop.close()
    return found
