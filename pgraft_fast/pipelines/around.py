"""Calls of single pipelines, taken note of; their class stays as it is, and so do all other pipelines of it."""

import functools
import threading
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
# What one of ours does around a call: around(pipe, call, original) is call itself, or a function of its arguments.
Around = Callable[[Any, Call, Call], Call]

# A member of a view of a pipeline in such a call, in which the class may call that of its base: no call of its own.
IN_CALL = "_pgraft_fast_in_call"

_LOCK = threading.Lock()
_MARK = "_pgraft_fast_around"


def watch(cls: Any, around: Around, *, outside: bool = False) -> None:
    """From now on calls of pipelines of this class go through `around`, which leaves alone all that are not its own.

    The class's `__call__` is replaced once, under its own name, signature and `__wrapped__`, and is back in its place
    when the last `around` is gone. outside: of the others.
    """
    with _LOCK:
        owner = _owner(cls)
        call = vars(owner)["__call__"]
        if not hasattr(call, _MARK):
            call = owner.__call__ = _watched(call)
        held = getattr(call, _MARK)
        if around not in held:
            setattr(call, _MARK, (*held, around) if outside else (around, *held))


def unwatch(cls: Any, around: Around) -> None:
    """Undo `watch`."""
    with _LOCK:
        owner = _owner(cls)
        call = vars(owner)["__call__"]
        if hasattr(call, _MARK):
            held = tuple(other for other in getattr(call, _MARK) if other is not around)
            setattr(call, _MARK, held)
            if not held:
                owner.__call__ = call._pgraft_fast_original


def _owner(cls: Any) -> Any:
    return next(base for base in cls.__mro__ if "__call__" in vars(base))


def _watched(original: Any) -> Any:
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        call = original
        for around in getattr(__call__, _MARK):
            call = around(self, call, original)
        return call(self, *args, **kwargs)

    # What is taken from below a decorator is the pipeline's own function.
    __call__.__wrapped__ = getattr(original, "__wrapped__", original)  # type: ignore[attr-defined]
    __call__._pgraft_fast_original = original  # type: ignore[attr-defined]
    setattr(__call__, _MARK, ())
    return __call__
