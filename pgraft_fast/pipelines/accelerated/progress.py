"""The progress bar of a call whose loop is taken over."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffusers import DiffusionPipeline

from pgraft_fast.pipelines.bars import Bar, NoBar


class Progress:
    """A pipeline's `progress_bar`. Where the loop `is_taken_over()`, its steps are counted by `ends`; where it
    `is_over()`, it has nothing left to do.
    """

    def __init__(
        self, pipe: Any, is_taken_over: Callable[[], bool], is_over: Callable[[], bool], shown: bool = True
    ) -> None:
        self._pipe, self._is_taken_over, self._is_over, self._shown = pipe, is_taken_over, is_over, shown
        self._bar: Any = None

    def __call__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        progress_bar = self._pipe.progress_bar
        own = getattr(progress_bar, "__func__", None) is DiffusionPipeline.progress_bar
        if (own and getattr(self._pipe, "_progress_bar_config", {}).get("disable") is True) or not self._shown:
            return NoBar() if iterable is None else self._rounds(list(iterable), NoBar())
        if iterable is None:
            self._bar = progress_bar(total=total)
            return Bar(self._bar, self._is_taken_over)
        rounds = list(iterable)
        self._bar = progress_bar(total=len(rounds))
        return self._rounds(rounds, self._bar)

    def ends(self, pipe: Any) -> Callable[[], object]:
        """Called after each step: counts it on the bar; true once the user has interrupted the pipeline, if any."""
        bar = self._bar
        if bar is None:
            # One call of C, where the property would be two of Python.
            return (lambda: False) if pipe is None else functools.partial(vars(pipe).get, "_interrupt")

        def ends() -> bool:
            bar.update()
            return pipe is not None and pipe.interrupt

        return ends

    def _rounds(self, rounds: list[Any], bar: Any) -> Iterator[Any]:
        with bar:
            for value in rounds:
                yield value
                if self._is_over():
                    return
                if not self._is_taken_over():
                    bar.update()
