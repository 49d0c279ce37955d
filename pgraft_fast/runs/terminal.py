"""Lines and progress for a person: a moving bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from pgraft_fast import report

# Columns that fit beside each other.
_NARROW = 8


class Terminal:
    """Writes to stderr, so that stdout stays free for JSON. log: gets the lines instead. speaks: false for a rank
    that another one speaks for.
    """

    def __init__(self, log: Callable[[str], None] | None = None) -> None:
        self._log = log
        self.speaks = True
        self._console = Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console.width = 120
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self.speaks:
            return
        if self._log is not None:
            self._log(text)
        elif self._console.is_terminal:
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def table(self, title: str, table: "report.Table") -> None:
        """A table and its note; first column left, the others right."""
        drawn = Table(title=title, title_justify="left")
        # Cells of a wide one take two lines rather than lose their ends.
        narrow = len(table.header) <= _NARROW
        for index, name in enumerate(table.header):
            drawn.add_column(name, justify="left" if index == 0 else "right", no_wrap=narrow)
        for row in table.rows:
            drawn.add_row(*row)
        self._console.print(drawn)
        self._console.print(table.note, markup=False)

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar for the block, where there is a terminal or a notebook; `advance` moves it."""
        if not self.speaks or not (self._console.is_terminal or self._console.is_jupyter):
            yield
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress, self._bar = progress, progress.add_task("start", total=total)
            try:
                yield
            finally:
                self._progress = None

    def advance(self, done: int, what: str) -> None:
        """Set the bar to `done`."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=done, description=what)
