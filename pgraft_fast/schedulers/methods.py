"""Methods of diffusers' schedulers that somebody has replaced: what a user put there is used."""

import inspect
import sys
from types import FunctionType
from typing import Any


class Methods:
    """The methods of a fast class and of diffusers' class below it, as they were when they were defined."""

    def __init__(self, fast: type, original: type) -> None:
        self._original = original
        below = {name: _as_written(value, original) for name, value in vars(original).items() if _counts(name, value)}
        above = {name: value for base in fast.__mro__ if _is_ours(base) for name, value in vars(base).items()}
        own = {name: getattr(fast, name) for name in below if name in above}
        self._names = frozenset(below)
        self._below = [(name, below[name]) for name in own]
        self._kept = [(name, method) for name, method in below.items() if name not in own]
        self._own = list(own.items())

    def replaced(self, scheduler: Any, cls: type, whole: bool = False) -> bool:
        """Whether a method is another one in the object, in its class, or in diffusers' class.

        whole: also those that the fast class has itself; a subclass may call them from its own.
        """
        original = vars(self._original)
        return not (
            self._names.isdisjoint(vars(scheduler))
            and all(getattr(cls, name) is method for name, method in self._kept)
            and all(original.get(name) is method for name, method in self._below)
            and (not whole or all(getattr(cls, name) is method for name, method in self._own))
        )


def _counts(name: str, value: Any) -> bool:
    return isinstance(value, FunctionType) and not name.startswith("__")


def _is_ours(cls: type) -> bool:
    return vars(cls).get("__module__", "").partition(".")[0] == __name__.partition(".")[0]


def _as_written(function: Any, cls: type) -> Any:
    """The function, or None where it is not from the file of its class: it was replaced before."""
    own = inspect.unwrap(function).__code__.co_filename == sys.modules[cls.__module__].__file__
    return function if own else None
