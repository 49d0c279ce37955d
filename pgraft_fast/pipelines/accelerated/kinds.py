"""Kinds of calls of a pipeline: those of one kind make the same loop."""

import contextlib
import functools
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.watched import Understood

# Kinds that are remembered of a pipeline, the last ones.
_KEPT = 64
# Numbers in a row that are told apart one by one, such as timesteps.
_FEW = 256
# Parts of the names of arguments that say what is drawn, in words and in numbers.
_WORDS, _NUMBERS = "prompt", "label"
_SCALE = "scale of guidance"
_PLAIN = frozenset((type(None), bool, int, float, str))

Kind = tuple[tuple[str, Any], ...]


class OtherKindError(Exception):
    """An argument of which it is not known what it does to a loop."""


def kind_of(arguments: dict[str, Any]) -> Kind:
    """Of a call with these arguments: numbers, switches and words by value, what is drawn by its form.

    Raises OtherKindError for objects that are none of these.
    """
    items = arguments.items()
    return tuple([(name, None if value is None else _form(value, _content(name))) for name, value in items])


@dataclass(frozen=True)
class _Known:
    """parts: of the pipeline that must be the very same. scale: name of the argument that is the scale of guidance."""

    understood: Understood
    parts: tuple[weakref.ref[Any], ...]
    scale: str | None


class Kinds:
    """What is understood of the calls of one pipeline.

    parts: objects on which an understanding depends, such as networks and settings; it is forgotten where others are in
    their place.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Kind, _Known | Literal[False]] = OrderedDict()
        self._lines: set[str] = set()

    def __len__(self) -> int:
        return sum(known is not False for known in self._known.values())

    def get(self, kind: Kind) -> "_Known | Literal[False] | None":
        """Of this very kind; False where such calls were watched in vain, None where it is not known."""
        return self._known.get(kind)

    def scaled(self, kind: Kind, parts: tuple[Any, ...]) -> Understood | None:
        """Of a kind that differs in its scale of guidance alone. It has to be compared with a step."""
        for name, value, other in _without_a_scale(kind):
            known = self._known.get(other)
            if known and known.scale == name and _same_parts(known.parts, parts):
                return known.understood.with_scale(value)
        return None

    def put(self, kind: Kind, understood: Understood, parts: tuple[Any, ...]) -> None:
        """Remember. A scale that an argument tells is taken from there, digit by digit."""
        references = tuple(weakref.ref(part) for part in parts)
        scale, name = understood.scale, None
        same = [c for c in _without_a_scale(kind) if scale is not None and abs(c[1] - scale) <= 1e-3 * abs(scale)]
        if len(same) == 1:
            name, value, other = same[0]
            understood = understood.with_scale(value)
            self._add(other, _Known(understood, references, name))
        self._add(kind, _Known(understood, references, name))

    def leave(self, kind: Kind) -> None:
        """Calls of this kind are not watched again."""
        self._add(kind, False)

    def is_new(self, line: str) -> bool:
        """Whether this line was not told before."""
        new = line not in self._lines
        self._lines.add(line)
        return new

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _add(self, kind: Kind, known: _Known | Literal[False]) -> None:
        self._known.pop(kind, None)
        self._known[kind] = known
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)


class Like:
    """What is known of calls like one call. Raises OtherKindError."""

    def __init__(self, known: Kinds, pipe: Any, scheduler: Any, arguments: dict[str, Any]) -> None:
        attributes, objects = _attributes(pipe)
        self._known, self._kind = known, kind_of(arguments) + attributes
        self._entry = known.get(self._kind)
        settings = (vars(part)["_internal_dict"] for part in (pipe, scheduler) if "_internal_dict" in vars(part))
        self._parts = (*modules_of(pipe).values(), type(scheduler), *settings, *objects)

    @property
    def is_left(self) -> bool:
        """Whether such calls were watched in vain."""
        return self._entry is False

    @property
    def understood(self) -> Understood | None:
        """Of this very kind, where networks and settings are those of then."""
        entry = self._entry
        return entry.understood if isinstance(entry, _Known) and _same_parts(entry.parts, self._parts) else None

    def scaled(self) -> Understood | None:
        """See `Kinds.scaled`."""
        return self._known.scaled(self._kind, self._parts)

    def put(self, understood: Understood) -> None:
        """See `Kinds.put`."""
        self._known.put(self._kind, understood, self._parts)

    def leave(self) -> None:
        """See `Kinds.leave`."""
        self._known.leave(self._kind)


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline, by name."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}


def _attributes(pipe: Any) -> tuple[Kind, list[Any]]:
    """Attributes of a pipeline that are no networks: by value, or objects. Those of one call have a _ before them."""
    values: list[tuple[str, Any]] = []
    objects: list[Any] = []
    for name, value in vars(pipe).items():
        if name[0] == "_" or name == "scheduler" or isinstance(value, nn.Module):
            continue
        if type(value) in _PLAIN:
            values.append((name, value))
        elif isinstance(value, (list, tuple, dict)):
            with contextlib.suppress(OtherKindError):
                values.append((name, _form(value, ())))
        elif hasattr(value, "__weakref__"):
            objects.append(value)
    return tuple(values), objects


def _without_a_scale(kind: Kind) -> Iterator[tuple[str, float, Kind]]:
    """Each number above 1, with the kind that leaves it open."""
    for place, (name, value) in enumerate(kind):
        if type(value) in (int, float) and value > 1.0:
            yield name, float(value), (*kind[:place], (name, _SCALE), *kind[place + 1 :])


def _same_parts(mine: tuple[weakref.ref[Any], ...], others: tuple[Any, ...]) -> bool:
    return len(mine) == len(others) and all(a() is b for a, b in zip(mine, others, strict=True))


@functools.cache
def _content(name: str) -> tuple[type, ...]:
    return (str,) * (_WORDS in name) + (int, float) * (_NUMBERS in name)


def _form(value: Any, content: tuple[type, ...]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return kind if kind in content else value
    if isinstance(value, (str, int, float)):
        return kind if isinstance(value, content) else value
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim <= 1 and len(value.reshape(-1)) <= _FEW:
        return type(value), tuple(value.tolist()) if value.ndim else value.item()
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype)
    if isinstance(value, torch.Generator):
        return torch.Generator
    if isinstance(value, dict):
        return dict, tuple((str(name), _form(part, content)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_form(part, content) for part in value)
    if isinstance(value, (torch.dtype, torch.device)):
        return value
    if isinstance(value, PGraftCallback):
        # Which adapter acts changes no loop.
        return PGraftCallback
    if hasattr(value, "size") and hasattr(value, "mode"):
        # A picture of Pillow.
        return type(value), value.size, value.mode
    raise OtherKindError(type(value).__name__)
