"""Progress bars of a pipeline whose loop ends sooner than it thinks."""

from collections.abc import Callable
from typing import Any


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
