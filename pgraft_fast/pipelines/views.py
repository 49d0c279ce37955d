"""Somebody's object with a few members of our own, for one who holds the view: nobody else sees them."""

import copy
import functools
import inspect
from collections import ChainMap
from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any

_SLOTS = ("_view_members", "_view_target")


def view(target: Any, members: MutableMapping[str, Any]) -> Any:
    """An object with the attributes of `target`, the very same ones, whose `members` are found before them.

    It is an instance of a subclass of the target's class, under the same name; what is set on it is set on the target.
    A member that is taken out of the mapping later is the target's again. "__call__" among them is what a call of the
    view does. A copy or a pickle of a view is one of the target.
    """
    if is_view(target):
        members = ChainMap(members, target._view_members)
        target = target._view_target
    own: Any = type(target)
    proxy = object.__new__(_class(own, frozenset(members)))
    object.__setattr__(proxy, "__dict__", vars(target))
    for name in _slots(own):
        object.__setattr__(proxy, name, getattr(target, name))
    object.__setattr__(proxy, "_view_members", members)
    object.__setattr__(proxy, "_view_target", target)
    return proxy


def is_view(value: Any) -> bool:
    """Whether `view` made it."""
    return hasattr(type(value), "_view_target")


def target_of(value: Any) -> Any:
    """What a view is one of; anything else as it is."""
    return value._view_target if is_view(value) else value


@functools.lru_cache(maxsize=256)
def _class(cls: Any, names: frozenset[str]) -> Any:
    body: dict[str, Any] = {name: _member(cls, name) for name in names if name != "__call__"}
    if "__call__" in names:
        body["__call__"] = lambda self, *args, **kwargs: self._view_members["__call__"](*args, **kwargs)
    body |= {"__slots__": _SLOTS, "__copy__": lambda self: copy.copy(self._view_target)}
    body["__reduce_ex__"] = lambda self, protocol: (target_of, (self._view_target,))
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (cls,), body)


def _member(cls: Any, name: str) -> property:
    def get(self: Any) -> Any:
        members, own = self._view_members, vars(self)
        if name in members:
            return members[name]
        return own[name] if name in own else getattr(self._view_target, name)

    def put(self: Any, value: Any) -> None:
        self._view_members.pop(name, None)
        vars(self)[name] = value

    return property(get, put)


@functools.lru_cache(maxsize=256)
def _slots(cls: Any) -> tuple[str, ...]:
    declared = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    return tuple(
        name for slots in declared for name in ((slots,) if isinstance(slots, str) else slots) if "__" not in name
    )


def like(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the name and signature of the original."""

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    if inspect.ismethod(original):
        # The pipelines inspect the step in every call.
        call.__signature__ = _signature(original.__func__)  # type: ignore[attr-defined]
    return call


@functools.lru_cache(maxsize=64)
def _signature(method: Callable[..., Any]) -> inspect.Signature:
    """Without self."""
    signature = inspect.signature(method)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
