"""A terminal for commands that run inside of a benchmark."""

from collections.abc import Iterator
from contextlib import contextmanager

from pgraft_fast.runs.terminal import Terminal


class Silent(Terminal):
    """Says nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, table: object) -> None:
        """Nothing."""

    def advance(self, done: int, what: str) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """Nothing."""
        yield
