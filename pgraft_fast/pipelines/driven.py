"""A pipeline's own loop as model(x, t, condition), the condition being a prompt's number."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.agreement import allowed_of
from pgraft_fast.pipelines.calls import seeds_of
from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.experts import Experts
from pgraft_fast.pipelines.facts import Facts
from pgraft_fast.pipelines.fast import FastLoop
from pgraft_fast.pipelines.grouping import in_order, rows_by
from pgraft_fast.pipelines.loras import Adapters
from pgraft_fast.pipelines.merged import Merged
from pgraft_fast.pipelines.switches import switches_of
from pgraft_fast.pipelines.ways import GUIDED, UNGUIDED, WATCHED, Key, Ways
from pgraft_fast.sampling.rounding import off


class Driven(nn.Module):
    """model(x, t, condition): x (B, *shape) states, t (B,) in [0, 1], condition (B,) int64 prompt numbers.

    Returns what the pipeline hands to its scheduler, guidance applied, of x's shape and dtype. Where its loop is
    explained, all rows go through the denoiser at once; else rows of one prompt and time are one iteration of a driven
    loop, others follow one by one. Several share a network: with other LoRAs on, called in other ways. way: GUIDED,
    UNGUIDED, or a scale of guidance. why: of each way, why its loop is driven; None where it is explained. samples: is
    called for samples, not for what was or is trained on, with the LoRA in the form that is fastest, see `Merged`.
    """

    def __init__(
        self, facts: Facts, net: nn.Module, ways: Ways, *, way: Key = GUIDED, adapters: Adapters | None = None,
        adapter: str | None = None, samples: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.facts, self.net, self.way, self._ways = facts, net, way, ways
        self.adapters, self.adapter, self.samples = adapters, adapter, samples
        self.calls_a_sample = ways.ways[way].evaluations

    @classmethod
    def of(cls, facts: Facts) -> "Driven":
        """The pipeline as it is, guided as its call asks for."""
        net = getattr(facts.pipe, facts.denoiser)
        return cls(facts, net, Ways.of(facts, net))

    @property
    def drivers(self) -> dict[Key, Driver]:
        """Of each way."""
        return self._ways.drivers

    @property
    def fast(self) -> dict[Key, FastLoop | Experts | None]:
        """Of each way, where it is explained."""
        return self._ways.fast

    @property
    def why(self) -> dict[Key, str | None]:
        """See above."""
        return self._ways.why

    @property
    def runs_as_it_is(self) -> bool:
        """A driven loop holds frames of the pipeline's code, a sharded network hooks: nothing is copied or compiled."""
        return self.fast[self.way] is None or getattr(self.net, "runs_as_it_is", False)

    @property
    def can_be_captured(self) -> bool:
        """Whether a CUDA graph of it can be made, for the prompts that are prepared."""
        fast = self._prepared()
        return fast is not None and fast.on_device and getattr(self.net, "can_be_captured", True)

    @property
    def one_call(self) -> bool:
        """Whether a call, for prompts that are prepared, is one of its network, whatever the rows."""
        fast = self._prepared()
        return fast is not None and fast.one_call

    @property
    def graph_key(self) -> tuple[Any, ...]:
        """What a captured graph must not be shared over. The LoRA is switched on: others share the network."""
        merged = self._switch()
        fast = self._prepared()
        table = () if fast is None else fast.graph_key
        made = () if merged is None else merged.key
        return self.adapter, self.way, table, made, tuple(switches_of(module) for module in self.net.modules())

    def like(self, *, way: Key | None = None, adapter: str | None = None, samples: bool | None = None) -> "Driven":
        """Another on the same network, by default with the same LoRA, called in the same way and for the same.

        Raises InputError for a scale of guidance that the pipeline does not take.
        """
        if self.adapters is not None and way is not None and way not in self._ways.ways:
            # It is watched with the network as it was.
            self.adapters.use(None)
        return Driven(
            self.facts, self.net, self._ways, way=self.way if way is None else self._ways.key(way),
            adapters=self.adapters, adapter=self.adapter if adapter is None else adapter,
            samples=self.samples if samples is None else samples,
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> "Driven":
        """The same pipeline with a copy of the network."""
        net = copy.deepcopy(self.net, memo)
        return Driven(
            self.facts, net, self._ways.with_net(net), way=self.way, adapters=copy.deepcopy(self.adapters, memo),
            adapter=self.adapter, samples=self.samples,
        )  # fmt: skip

    def compiled(self, compile: Callable[[nn.Module], Any]) -> "Driven":
        """The same with its networks compiled; what is around them reads prompts on the host."""
        return Driven(
            self.facts, self.net, self._ways.compiled(compile), way=self.way, adapters=self.adapters,
            adapter=self.adapter, samples=self.samples,
        )  # fmt: skip

    def train(self, mode: bool = True) -> "Driven":
        """The network stays in the mode in which the pipeline calls it: some answer otherwise in training."""
        return self

    def prepare(self, numbers: Sequence[int]) -> None:
        """These prompts will be asked for: what their calls give the denoiser is brought to its device."""
        self._ways.wanted[:] = numbers

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        merged = self._switch()
        if merged is None:
            return self._output(x, t, condition)
        with merged.in_place():
            return self._output(x, t, condition)

    def _output(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        fast = self._prepared()
        if fast is not None:
            return fast.output(x, self.facts.times.of_times(t), condition)
        driver, times, numbers = self.drivers[self.way], self.facts.times, condition.tolist()
        groups = rows_by(zip(numbers, t.tolist(), self._slots(numbers), strict=True))
        parts = [
            driver.output(x if len(groups) == 1 else x[rows], times.of_time(time), number, slot)
            for (number, time, slot), rows in groups.items()
        ]
        return in_order(parts, groups)

    @torch.no_grad()
    def is_null(self, number: int) -> bool:
        """Whether this prompt, without guidance, is what the guidance of the first prompt is away from."""
        guided, plain = self.fast[GUIDED], self.fast[UNGUIDED]
        if guided is None or plain is None or guided.null is None:
            return False
        state = self.facts.guided.state
        x = torch.randn(1, *state.shape, generator=torch.Generator().manual_seed(0)).to(state.device)
        t = self.facts.times.of_times(torch.tensor([self.facts.begin * WATCHED[0]])).to(state.device)
        first, condition = (torch.tensor([row], device=state.device) for row in (0, number))
        guided.prepare([0])
        plain.prepare([number])
        expected = guided.parts(x, t, first)[guided.null]
        return off(plain.output(x, t, condition), expected) <= allowed_of(self.facts.pipe, state)

    @torch.no_grad()
    def initial_state(self, seed: int, sample_id: Tensor, condition: Tensor) -> Tensor | None:
        """First states (B, *shape) float32 as the pipeline prepares them; None where they are plain noise."""
        if self.facts.noise:
            return None
        numbers, ids = condition.tolist(), sample_id.tolist()
        x = torch.empty(len(ids), *self.facts.shape, device=sample_id.device)
        for (number, slot), rows in rows_by(zip(numbers, self._slots(numbers), strict=True)).items():
            states = self.drivers[GUIDED].start(number, seeds_of(seed, [ids[row] for row in rows]), slot)
            x[rows] = states.to(x)
        return x

    def close(self) -> None:
        """Leave all loops."""
        for driver in self.drivers.values():
            driver.close()

    def _switch(self) -> Merged | None:
        """Turn the LoRA on, or what stands for it."""
        if self.adapters is None:
            return None
        if self.samples and not torch.is_grad_enabled():
            return self.adapters.sampling(self.adapter)
        self.adapters.use(self.adapter)
        return None

    def _prepared(self) -> FastLoop | Experts | None:
        fast = self.fast[self.way]
        if fast is not None and self._ways.wanted:
            fast.prepare(self._ways.wanted)
        return fast

    def _slots(self, numbers: list[int]) -> list[int]:
        """0, or where samples must be alone, which one of its prompt's each is."""
        seen: Counter[int] = Counter()
        slots = []
        for number in numbers:
            slots.append(seen[number] if self.facts.alone else 0)
            seen[number] += 1
        return slots
