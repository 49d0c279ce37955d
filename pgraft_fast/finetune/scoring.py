"""Scoring beside sampling: the samples of one batch are scored while those of the next are drawn."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from pgraft_fast.errors import StoppedError
from pgraft_fast.rewards.protocol import score_batches


class Scoring:
    """A context: `add` samples as they come, then `rewards`. beside: score in a thread, beside what else goes on.

    batch_size: samples at once for the reward. check(): while waiting, may raise; so may whatever the reward raises.
    """

    def __init__(
        self, reward: Callable[..., object], batch_size: int, check: Callable[[], None], beside: bool = False
    ) -> None:
        self._reward, self._batch_size, self._check = reward, batch_size, check
        self._pool = ThreadPoolExecutor(1, "scoring") if beside else None
        self._given_up = threading.Event()
        self._parts: list[Future[Tensor] | Tensor] = []

    def add(self, samples: Tensor, prompts: Sequence[str], sample_id: Tensor) -> None:
        """Score these, now or soon."""
        if self._pool is None:
            self._parts.append(score_batches(self._reward, samples, prompts, sample_id, self._batch_size, self._check))
        else:
            self._parts.append(
                self._pool.submit(
                    score_batches, self._reward, samples, prompts, sample_id, self._batch_size, self._check_beside
                )
            )

    def raise_early(self) -> None:
        """What a reward has raised by now."""
        for part in self._parts:
            if isinstance(part, Future) and part.done():
                part.result()

    def rewards(self) -> Tensor:
        """(n,) of everything added, in order; see `rewards.protocol.finished`."""
        return torch.cat([self._result(part) for part in self._parts])

    def _result(self, part: Future[Tensor] | Tensor) -> Tensor:
        if not isinstance(part, Future):
            return part
        while True:
            self._check()
            try:
                return part.result(timeout=0.1)
            except TimeoutError:
                if part.done():
                    raise

    def _check_beside(self) -> None:
        """In the thread: rewards that can be stopped ask now and then."""
        if self._given_up.is_set():
            raise StoppedError("given up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._given_up.set()
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
