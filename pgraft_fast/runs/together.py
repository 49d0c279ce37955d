"""What a run holds for as long as it is at work: its ranks, its folder, and the signals that stop it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pgraft_fast.finetune.checkpoint import run_lock
from pgraft_fast.finetune.signals import StopRequest, stop_on_signals
from pgraft_fast.ranks.ranks import Ranks
from pgraft_fast.ranks.start import joined
from pgraft_fast.runs.terminal import Terminal


@contextmanager
def at_work(run: Path | None, terminal: Terminal) -> Iterator[tuple[Ranks, StopRequest]]:
    """run: folder that the first rank holds for all. terminal: speaks on the first rank alone. Raises StorageError."""
    with stop_on_signals() as stop, joined() as ranks, ExitStack() as held:
        terminal.speaks = ranks.first
        with ranks.together():
            if ranks.first and run is not None:
                held.enter_context(run_lock(run))
        yield ranks, stop
