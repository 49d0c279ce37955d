"""Arguments of a network at each step of a trajectory, most of them the same at all steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.arguments import Wanted, built
from pgraft_fast.pipelines.rules import Answer, CallRule, Time, Whole, leaves_of, values_of
from pgraft_fast.pipelines.trees import fresh

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class States:
    """States x of a step, as the denoiser sees them, laid out once for all that take them alike."""

    __slots__ = ("_laid", "x")

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._laid: dict[tuple[int, torch.dtype], Tensor] = {}

    def laid(self, rule: Whole) -> Tensor:
        """See `Whole.laid`."""
        key = (rule.copies, rule.dtype)
        states = self._laid.get(key)
        if states is None:
            states = self._laid[key] = rule.laid(self.x)
        return states


class Request:
    """One call of a network an iteration: `at(place, states, answers)` are its arguments, a list and a dict, the same
    ones at every step.

    arguments: those of the first iteration. times: of all steps. taken: whether a later call takes its answer. made:
    the list and the dict; held, what is put into them anew at every step, as some networks empty it, and timed, the
    times of all steps: (0 for a place in the list, 1 for a name; the place; the values). state: in the same way the
    rule of the states, where these alone are what else is put in; else None.
    """

    def __init__(self, rule: CallRule, arguments: Arguments, times: Tensor) -> None:
        self.net, self.taken = rule.net, rule.part is None
        self.made: tuple[Any, Any] = list(arguments[0]), dict(arguments[1])
        if "return_dict" in self.made[1]:
            self.made[1]["return_dict"] = False
        held = rule.places if rule.empties else ()
        self.held = [(side, key, self.made[side][key]) for side, key, _ in held]
        changing = rule.changing
        self.timed = [(side, key, _times(part, times)) for side, key, part in changing if isinstance(part, Time)]
        rest = [(side, key, part) for side, key, part in changing if not isinstance(part, Time)]
        self._makers = [(side, key, _maker(part, self.made[side][key], times)) for side, key, part in rest]
        alone = len(rest) == 1 and isinstance(rest[0][2], Whole) and rest[0][2].dim is None
        self.state: tuple[int, Any, Whole] | None = rest[0] if alone else None

    def at(self, place: int, states: States, answers: Sequence[list[Tensor]] = ()) -> tuple[list[Any], dict[str, Any]]:
        """Of the step with this number."""
        made = self.made
        for side, key, value in self.held:
            made[side][key] = fresh(value)
        for side, key, values in self.timed:
            made[side][key] = values[place]
        for side, key, make in self._makers:
            made[side][key] = make(place, states, answers)
        return made


_Maker = Callable[[int, States, Sequence[list[Tensor]]], Any]


def _maker(rule: Any, value: Any, times: Tensor) -> _Maker:
    """make(place, states, answers): an argument that changes."""
    if isinstance(rule, Whole) and rule.dim is None:
        return lambda place, states, answers: states.laid(rule)
    if isinstance(rule, Whole):
        tail = rule.tail(value)
        return lambda place, states, answers: torch.cat((states.laid(rule), tail), dim=rule.dim or 0)
    if isinstance(rule, Answer):
        return lambda place, states, answers: answers[rule.call][rule.place]
    every = {leaf: _times(leaf, times) for leaf in leaves_of(rule) if isinstance(leaf, Time)}
    leaves = [fixed for _, fixed in values_of(rule, value)]

    def make(place: int, states: States, answers: Sequence[list[Tensor]]) -> Any:
        return built(rule, iter(leaves), Wanted(states.x, lambda leaf: every[leaf][place], list(answers)))

    return make


def _times(rule: Time, times: Tensor) -> tuple[Tensor, ...]:
    """The argument at each step."""
    values = rule.of(times)
    sides = rule.extra
    return (values.view(-1, *[1] * len(sides)).expand(-1, *sides) if sides else values).unbind()
