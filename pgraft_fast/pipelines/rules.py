"""How a pipeline's loop calls its denoiser, and what it makes of the answer, as data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.sampling.guidance import Guide

# How far from one a sum of the weights of guidance is at most.
_WHOLE = 1e-4


@dataclass(frozen=True)
class Constant:
    """An argument that is the same in all iterations. rows: of a sample, along dim; 0 where all samples share it."""

    rows: int = 0
    dim: int = 0


@dataclass(frozen=True)
class Whole:
    """The states, `copies` times. dim: along which constants of this length follow them; None where there are none."""

    copies: int
    dtype: torch.dtype
    dim: int | None = None
    length: int = 0

    def laid(self, x: Tensor) -> Tensor:
        """From states (n, *shape), without what follows them."""
        x = x if x.dtype is self.dtype else x.to(self.dtype)
        return x if self.copies == 1 else torch.cat((x,) * self.copies)

    def tail(self, value: Tensor) -> Tensor:
        """What follows the states in an argument."""
        return value.narrow(self.dim or 0, value.shape[self.dim or 0] - self.length, self.length)


@dataclass(frozen=True)
class Listed:
    """A list with an entry for each row, `copies` for a sample. state: of states, in this shape and dtype, or else of
    constants.
    """

    copies: int
    state: bool
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Time:
    """t / divisor, or `less_from` less that; where it is divided last, (less_from - t) / divisor. Worked out in dtype
    where first is true, else brought to it afterwards.

    rows: of each state; 0 where it has none. extra: sides of the other dimensions.
    """

    divisor: float
    less_from: float | None
    dtype: torch.dtype
    first: bool
    rows: int
    extra: tuple[int, ...] = ()
    divided: bool = False

    def of(self, t: Tensor) -> Tensor:
        """From timesteps of any shape."""
        value = t.to(self.dtype) if self.first else t
        value = self.less_from - value if self.divided and self.less_from is not None else value
        value = value if self.divisor == 1.0 else value / self.divisor
        value = value if self.divided or self.less_from is None else self.less_from - value
        return value.to(self.dtype)


@dataclass(frozen=True)
class Part:
    """Where in an answer the output for the states is. copies: of them; the first `length` along dim."""

    copies: int
    dim: int | None = None
    length: int = 0

    def of(self, out: Any, x: Tensor) -> list[Tensor]:
        """(n, *shape) for each copy of the states x."""
        answer = answer_of(out)
        if isinstance(answer, list):
            answer = torch.stack([row.reshape(x.shape[1:]) for row in answer])
        if self.dim is not None:
            answer = answer.narrow(self.dim, 0, self.length)
        return [part.reshape(x.shape) for part in answer.chunk(self.copies)]


@dataclass(frozen=True)
class Answer:
    """A tensor of what an earlier call of the iteration returned, as a ControlNet's for the denoiser. place: among all
    of that call.
    """

    call: int
    place: int


@dataclass(frozen=True)
class CallRule:
    """One call of a network. args, kwargs: with a rule in the place of each leaf. part: None where a later call takes
    what it returned. empties: whether it takes what it used out of lists and dicts among its arguments.
    """

    net: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    part: Part | None
    empties: bool = False

    @cached_property
    def places(self) -> tuple[tuple[int, Any, Any], ...]:
        """Of its arguments: 0 and the place in the list, or 1 and the name; the rule."""
        return (
            *((0, place, part) for place, part in enumerate(self.args)),
            *((1, *pair) for pair in self.kwargs.items()),
        )

    @cached_property
    def changing(self) -> tuple[tuple[int, Any, Any], ...]:
        """Those of `places` that are not the same at every step."""
        return tuple(place for place in self.places if _changes(place[-1]))


@dataclass(frozen=True)
class Explanation:
    """calls: of networks in their order. weights: the output is the sum of all parts of all answers by these, in
    dtype. norm: place of the part whose length, along the last dimension, the sum is brought to; None where it stays.
    rescale: of guidance, see `Guide`.
    """

    calls: tuple[CallRule, ...]
    weights: tuple[float, ...]
    dtype: torch.dtype
    norm: int | None = None
    rescale: float = 0.0

    @cached_property
    def text(self) -> str:
        """Equal for equal explanations."""
        return repr(self)

    @property
    def copies(self) -> int:
        """Of the states in a call of the denoiser."""
        return next(call.part.copies for call in self.calls if call.part is not None)

    @property
    def null(self) -> int | None:
        """Which of two parts is the answer without the prompt; None where there is no guidance of two."""
        return None if len(self.weights) != 2 else int(abs(self.weights[0]) > abs(self.weights[1]))

    @property
    def scale(self) -> float | None:
        """Of guidance, by which two parts become the output and nothing else is done to them; else None."""
        if self.null is None or self.norm is not None or abs(sum(self.weights) - 1.0) >= _WHOLE:
            return None
        return self.weights[1 - self.null]

    def with_scale(self, scale: float) -> "Explanation":
        """The same with another scale of guidance."""
        return replace(self, weights=(scale, 1.0 - scale) if self.null else (1.0 - scale, scale))

    def output(self, parts: list[Tensor]) -> Tensor:
        """From the parts."""
        parts = [part.to(self.dtype) for part in parts]
        out = self._sum(parts)
        if self.norm is None:
            return out
        return out * (parts[self.norm].norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True))

    def _sum(self, parts: list[Tensor]) -> Tensor:
        weights, null = self.weights, self.null
        if len(parts) == 1:
            return parts[0] if weights[0] == 1.0 else parts[0] * weights[0]
        if null is not None and abs(abs(sum(weights)) - 1.0) < _WHOLE:
            sign = round(sum(weights))
            return sign * Guide(parts[null], weights[1 - null] * sign, self.rescale).combine(parts[1 - null])
        return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(dim=0)


def answer_of(out: Any) -> Any:
    """The tensor, or list of tensors, of what a denoiser returns; None where it is neither of them."""
    if isinstance(out, (Tensor, list)):
        return out
    # diffusers' outputs, asked by place, make a tuple of all that they hold first: 30 calls of functions.
    values = dict.values(out) if isinstance(out, dict) else out if isinstance(out, tuple) else ()
    return next(iter(values), None)


def tensors_of(out: Any) -> list[Tensor]:
    """All that a network returned, in their order."""
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def leaves_of(rule: Any) -> list[Any]:
    """The rules of a call's arguments, in their order."""
    if isinstance(rule, dict):
        return [leaf for part in rule.values() for leaf in leaves_of(part)]
    if isinstance(rule, (list, tuple)):
        return [leaf for part in rule for leaf in leaves_of(part)]
    return [rule]


def pairs_of(rule: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Each leaf of a rule with its argument."""
    if isinstance(rule, dict):
        for name in rule:
            yield from pairs_of(rule[name], value[name])
    elif isinstance(rule, (list, tuple)):
        for part, argument in zip(rule, value, strict=True):
            yield from pairs_of(part, argument)
    else:
        yield rule, value


def values_of(rule: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Each leaf of a rule with what does not change of its argument: all of a constant, what follows states."""
    for leaf, argument in pairs_of(rule, value):
        if isinstance(leaf, Whole):
            yield leaf, None if leaf.dim is None else leaf.tail(argument)
        else:
            changes = isinstance(leaf, (Answer, Time)) or (isinstance(leaf, Listed) and leaf.state)
            yield leaf, None if changes else argument


def shapes_in(rule: CallRule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Of the arguments of a call that hold states and times: shapes, and lengths of lists."""
    sides: tuple[Any, Any] = (args, kwargs)
    return [
        len(value) if isinstance(leaf, Listed) else value.shape
        for side, key, part in rule.changing
        for leaf, value in pairs_of(part, sides[side][key])
        if isinstance(leaf, (Whole, Time)) or (isinstance(leaf, Listed) and leaf.state)
    ]


def _changes(rule: Any) -> bool:
    leaves = leaves_of(rule)
    return not all(isinstance(leaf, Constant) or (isinstance(leaf, Listed) and not leaf.state) for leaf in leaves)
