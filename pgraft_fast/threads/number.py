"""torch's number of threads, for one thread and a while."""

import contextlib
import threading
from collections.abc import Iterator

import torch

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def threads_here(number: int) -> Iterator[None]:
    """This many in this thread alone. Afterwards all is as it was, for this thread and for new ones."""
    before, of_new_threads = torch.get_num_threads(), _set_here(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if before != of_new_threads:
            _set_here(before, of_new_threads)


def _set_here(threads: int, of_new_threads: int | None = None) -> int:
    """torch.set_num_threads for this thread alone. Returns the number that new threads begin with, which stays, or
    becomes `of_new_threads`.

    torch sets both, and a thread that begins meanwhile would keep the wrong one for good; a new thread of ours finds
    what was there and sets it again.
    """
    initial: list[int] = []
    started, done = threading.Event(), threading.Event()

    def keep() -> None:
        initial.append(torch.get_num_threads())
        started.set()
        done.wait()
        torch.set_num_threads(initial[0] if of_new_threads is None else of_new_threads)

    with _one_at_a_time:
        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        started.wait()
        try:
            torch.set_num_threads(threads)
        finally:
            done.set()
            keeper.join()
    return initial[0]
