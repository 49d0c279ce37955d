"""A terminal for commands that run inside of a benchmark."""

from contextlib import AbstractContextManager, nullcontext

from pgraft_fast.runs.terminal import Terminal


class Silent(Terminal):
    """Says nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, table: object) -> None:
        """Nothing."""

    def advance(self, done: int, what: str) -> None:
        """Nothing."""

    def progress(self, total: int) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()
