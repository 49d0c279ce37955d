"""A pipeline's own loop as model(x, t, condition), the condition being a prompt's number."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.calls import seeds_of
from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.explain import NotExplainedError
from pgraft_fast.pipelines.facts import Facts
from pgraft_fast.pipelines.fast import FastLoop
from pgraft_fast.pipelines.grouping import in_order, rows_by
from pgraft_fast.text_to_image.denoiser import Adapters

# Times at which a loop is watched, as shares of the first.
_WATCHED = (0.61, 0.13, 0.97)


class Driven(nn.Module):
    """model(x, t, condition): x (B, *shape) states, t (B,) in [0, 1], condition (B,) int64 prompt numbers.

    Returns what the pipeline hands to its scheduler, guidance applied, of x's shape and dtype. Where its loop is
    explained, all rows go through the denoiser at once; else rows of one prompt and time are one iteration of a driven
    loop, others follow one by one. Several share a network: with other LoRAs on, with guidance or without. guided:
    whether the pipeline's guidance is on. why: of each way, why its loop is driven; None where it is explained.
    """

    # Its loops hold frames of the pipeline's code: there is nothing to be copied or compiled.
    runs_as_it_is = True

    def __init__(
        self, facts: Facts, net: nn.Module, drivers: dict[bool, Driver], *, guided: bool = True,
        adapters: Adapters | None = None, adapter: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.facts, self.net, self.drivers, self.guided = facts, net, drivers, guided
        self.adapters, self.adapter = adapters, adapter
        self.fast: dict[bool, FastLoop | None] = {True: None, False: None}
        self.why: dict[bool, str | None] = {}
        self.calls_a_sample = (facts.guided if guided else facts.unguided).evaluations

    @classmethod
    def of(cls, facts: Facts) -> "Driven":
        """The pipeline as it is, guided as its call asks for."""
        net = getattr(facts.pipe, facts.denoiser)
        made = cls(facts, net, _drivers(facts, {}))
        made.explain()
        return made

    def explain(self) -> None:
        """Find out whether the denoiser can be called directly; where it cannot, the loops are driven."""
        times = [self.facts.times.of_time(self.facts.begin * share) for share in _WATCHED]
        for guided in (True, False):
            driver = self.drivers[guided]
            if not guided and driver is self.drivers[True]:
                self.fast[False], self.why[False] = self.fast[True], self.why[True]
                continue
            self.fast[guided], self.why[guided] = None, "the seed of a sample decides more than its noise"
            if self.facts.seeded:
                continue
            if self.facts.guided.calls.rows == 1:
                self.why[guided] = "the pipeline makes one sample at once"
                continue
            try:
                self.fast[guided], self.why[guided] = FastLoop.of(driver, self.net, times), None
            except NotExplainedError as error:
                self.why[guided] = str(error)

    @property
    def unguided(self) -> bool:
        """`guidance` of training."""
        return False

    def like(self, *, guidance: bool | None = None, adapter: str | None = None) -> "Driven":
        """Another on the same network, by default with the same LoRA and guidance."""
        made = Driven(
            self.facts, self.net, self.drivers, guided=self.guided if guidance is None else guidance,
            adapters=self.adapters, adapter=self.adapter if adapter is None else adapter,
        )  # fmt: skip
        made.fast, made.why = self.fast, self.why
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Driven":
        """The same pipeline with a copy of the network."""
        net = copy.deepcopy(self.net, memo)
        drivers = _drivers(self.facts, {self.facts.denoiser: net})
        made = Driven(self.facts, net, drivers, guided=self.guided)
        made.fast = {guided: one and one.with_net(net) for guided, one in self.fast.items()}
        made.why = self.why
        return made

    def train(self, mode: bool = True) -> "Driven":
        """The network stays in the mode in which the pipeline calls it: some answer otherwise in training."""
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        if self.adapters is not None:
            self.adapters.use(self.adapter)
        numbers = condition.tolist()
        fast = self.fast[self.guided]
        if fast is not None:
            return fast.output(x, [self.facts.times.of_time(one) for one in t.tolist()], numbers)
        driver, times = self.drivers[self.guided], self.facts.times
        groups = rows_by(zip(numbers, t.tolist(), self._slots(numbers), strict=True))
        parts = [
            driver.output(x if len(groups) == 1 else x[rows], times.of_time(time), number, slot)
            for (number, time, slot), rows in groups.items()
        ]
        return in_order(parts, groups)

    @torch.no_grad()
    def initial_state(self, seed: int, sample_id: Tensor, condition: Tensor) -> Tensor | None:
        """First states (B, *shape) float32 as the pipeline prepares them; None where they are plain noise."""
        if self.facts.noise:
            return None
        numbers, ids = condition.tolist(), sample_id.tolist()
        x = torch.empty(len(ids), *self.facts.shape, device=sample_id.device)
        for (number, slot), rows in rows_by(zip(numbers, self._slots(numbers), strict=True)).items():
            found = self.drivers[True].start(number, seeds_of(seed, [ids[row] for row in rows]), slot)
            x[rows] = found.to(x)
        return x

    def _slots(self, numbers: list[int]) -> list[int]:
        """0, or where samples must be alone, which one of its prompt's each is."""
        seen: Counter[int] = Counter()
        found = []
        for number in numbers:
            found.append(seen[number] if self.facts.alone else 0)
            seen[number] += 1
        return found

    def finish(self, x: Tensor, number: int) -> Any:
        """What the pipeline's call returns for final states (n, *shape) of a prompt."""
        return self.drivers[True].finish(x, number)

    def close(self) -> None:
        """Leave all loops."""
        for driver in self.drivers.values():
            driver.close()


def _drivers(facts: Facts, nets: dict[str, nn.Module]) -> dict[bool, Driver]:
    """With guidance and without; one where that is the same."""
    guided = Driver(facts.guided.calls, facts.guided.state, nets)
    if facts.unguided is facts.guided:
        return {True: guided, False: guided}
    return {True: guided, False: Driver(facts.unguided.calls, facts.unguided.state, nets)}
