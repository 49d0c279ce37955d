"""A pipeline with two denoisers by noise level, each called directly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.fast import FastLoop
from pgraft_fast.pipelines.grouping import in_order, rows_by


@dataclass(frozen=True)
class Experts:
    """As `FastLoop`. above: at timesteps of `high` and more, below: of `low` and less; between, where it is not known
    which of the two is asked, the loop is driven.
    """

    above: FastLoop
    below: FastLoop
    high: float
    low: float

    @classmethod
    def of(cls, driver: Driver, high: float, low: float, above: Sequence[float], below: Sequence[float]) -> "Experts":
        """Each watched at three timesteps. Raises NotExplainedError."""
        return cls(FastLoop.of(driver, above), FastLoop.of(driver, below), high, low)

    @property
    def null(self) -> int | None:
        """See `FastLoop.null`."""
        return self.above.null

    @property
    def on_device(self) -> bool:
        """Which of the two is asked is read back to the host."""
        return False

    @property
    def graph_key(self) -> tuple[int, ...]:
        """Of both."""
        return (*self.above.graph_key, *self.below.graph_key)

    @property
    def one_call(self) -> bool:
        """See `FastLoop.one_call`; rows may go through either."""
        return False

    def prepare(self, numbers: Sequence[int]) -> None:
        """For both."""
        self.above.prepare(numbers)
        self.below.prepare(numbers)

    def mapped(self, change: Callable[[str, nn.Module], Any]) -> "Experts":
        """See `FastLoop.mapped`."""
        return Experts(self.above.mapped(change), self.below.mapped(change), self.high, self.low)

    def parts(self, x: Tensor, t: Tensor, numbers: Tensor) -> list[Tensor]:
        """See `FastLoop.parts`; of the first."""
        return self.above.parts(x, t, numbers)

    def output(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        """See `FastLoop.output`."""
        known, prompts = t.tolist(), numbers.tolist()
        sides = [1 if timestep >= self.high else -1 if timestep <= self.low else 0 for timestep in known]
        # Between them each prompt and time is one iteration of its own.
        keys = [(side, 0.0, 0) if side else (side, known[row], prompts[row]) for row, side in enumerate(sides)]
        groups = rows_by(keys)
        parts = []
        for (side, time, number), rows in groups.items():
            if side:
                fast = self.above if side > 0 else self.below
                place = torch.tensor(rows, device=x.device)
                parts.append(fast.output(x[place], t[place.to(t.device)], numbers[place.to(numbers.device)]))
            else:
                parts.append(self.above.driver.output(x[rows], time, number))
        return in_order(parts, groups)
