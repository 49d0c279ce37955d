"""Attributes of other people's objects, replaced for the length of a call."""

import functools
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


class Replaced:
    """An attribute of one object, replaced by a function of its name and signature until `undo()`."""

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self.original = getattr(owner, name)
        self._owner, self._own, self._name, self._before = owner, vars(owner), name, vars(owner).get(name, self)
        self._ours = self._own[name] = _like(self.original, function)

    def redo(self) -> None:
        """Replaced again, whatever is there now."""
        self.original, self._before = getattr(self._owner, self._name), self._own.get(self._name, self)
        self._own[self._name] = self._ours

    def undo(self) -> None:
        """As before; but what somebody else has put there meanwhile stays (offloading renews its hooks in a call)."""
        if self._own.get(self._name) is not self._ours:
            return
        if self._before is self:
            del self._own[self._name]
        else:
            self._own[self._name] = self._before


def _like(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
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
    found = inspect.signature(method)
    return found.replace(parameters=list(found.parameters.values())[1:])


class Bar:
    """A progress bar whose own updates stop once the loop has been taken over."""

    def __init__(self, bar: Any, silent: Callable[[], bool]) -> None:
        self._own, self._silent = bar, silent

    def update(self, n: int = 1) -> None:
        if not self._silent():
            self._own.update(n)

    def __enter__(self) -> "Bar":
        self._own.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._own.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class NoBar:
    """Stands for a progress bar that is not shown."""

    def update(self, n: int = 1) -> None:
        """Nothing."""

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing."""
