"""A network's arguments, built by their rules from states, times and what does not change."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgraft_fast.pipelines.rules import Answer, Listed, Time, Whole


class Wanted(NamedTuple):
    """x: states. time: of a rule, the argument. answers: what the calls before returned, as far as a later one takes
    it.
    """

    x: Tensor
    time: Callable[[Time], Any]
    answers: list[list[Tensor]]


def built(rule: Any, leaves: Iterator[Any], wanted: Wanted) -> Any:
    """The argument, or all of them, with the shape of the rule. leaves: see `rules.values_of`."""
    if isinstance(rule, dict):
        return {name: built(part, leaves, wanted) for name, part in rule.items()}
    if isinstance(rule, (list, tuple)):
        return type(rule)(built(part, leaves, wanted) for part in rule)
    value, x = next(leaves), wanted.x
    if isinstance(rule, Answer):
        return wanted.answers[rule.call][rule.place]
    if isinstance(rule, Whole):
        head = rule.laid(x)
        return head if rule.dim is None else torch.cat((head, value), dim=rule.dim)
    if isinstance(rule, Listed) and rule.state:
        return [row.reshape(rule.shape).to(rule.dtype) for _ in range(rule.copies) for row in x]
    return wanted.time(rule) if isinstance(rule, Time) else value
