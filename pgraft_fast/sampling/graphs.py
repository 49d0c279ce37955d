"""CUDA graphs: a function of tensors is captured once and replayed.

A captured function is found by its key and the shapes of its inputs; its weights may change in place. Graphs share one
memory pool; beyond the memory limit the one unused for longest goes. Where memory ends during a capture the caller is
told and runs the function plainly.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import is_out_of_memory

_LOG = logging.getLogger(__name__)
_WARM_UP_RUNS = 2

Function = Callable[[list[Tensor], list[torch.Generator]], list[Tensor]]


@dataclass
class Captured:
    """One graph, its input and output buffers, its generators, and what it must keep alive."""

    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]
    generators: list[torch.Generator]
    bytes: int
    kept: Any = None

    def replay(self, inputs: Sequence[Tensor], generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Outputs for these inputs, copied out of the buffers; the generators advance as in a plain run."""
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        for own, given in zip(self.generators, generators, strict=True):
            own.set_state(given.get_state())
        self.graph.replay()
        for own, given in zip(self.generators, generators, strict=True):
            given.set_state(own.get_state())
        return [output.clone() for output in self.outputs]


@dataclass
class GraphCache:
    """Captured functions, the least recently used one dropped first beyond `memory_limit` bytes (None: no limit)."""

    memory_limit: int | None = None
    _held: "OrderedDict[Hashable, Captured]" = field(default_factory=OrderedDict)
    _refused: set[Hashable] = field(default_factory=set)
    _pool: Any = None

    def run(
        self,
        key: Hashable,
        function: Function,
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
        keep: Callable[[], Any] = lambda: None,
    ) -> list[Tensor] | None:
        """function(inputs, generators) by replaying its graph; None where memory did not suffice to capture it.

        The function must be the same for the same key, read nothing back, and draw only from the default generator of
        the device or from `generators`. keep(): what the graph reads besides its inputs and weights, asked after the
        first run and held as long as the graph.
        """
        whole = (key, tuple((tuple(value.shape), value.dtype, value.stride(), value.device) for value in inputs))
        if whole in self._refused:
            return None
        found = self._held.get(whole)
        if found is None:
            try:
                found = self._capture(function, inputs, generators)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.clear()
                self._refused.add(whole)
                _LOG.warning("memory did not suffice to capture a CUDA graph: this shape runs without")
                return None
            found.kept = keep()
            self._held[whole] = found
            self._shrink()
        self._held.move_to_end(whole)
        return found.replay(inputs, generators)

    def clear(self) -> None:
        """Drop every graph."""
        self._held.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Memory held by the graphs."""
        return sum(one.bytes for one in self._held.values())

    def _shrink(self) -> None:
        while self.memory_limit is not None and len(self._held) > 1 and self.bytes > self.memory_limit:
            self._held.popitem(last=False)

    def _capture(self, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator]) -> Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return capture(function, inputs, generators, self._pool)


def capture(
    function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator], pool: Any = None
) -> Captured:
    """Warm up and capture function(inputs, generators) on copies of both; nothing of the caller's changes."""
    device = inputs[0].device
    buffers = [value.clone() for value in inputs]
    own = [clone_generator(generator) for generator in generators]
    default = torch.cuda.get_rng_state(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                function(buffers, own)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_reserved(device)
        graph = torch.cuda.CUDAGraph()
        for generator in own:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=pool, stream=side):
            outputs = function(buffers, own)
    finally:
        torch.cuda.set_rng_state(default, device)
    return Captured(graph, buffers, outputs, own, max(0, torch.cuda.memory_reserved(device) - before))


def clone_generator(generator: torch.Generator) -> torch.Generator:
    """Another generator in the same state."""
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin


def weights_key(module: Any) -> tuple[Any, ...]:
    """Where a module's weights lie and what is switched on in it: a graph is valid as long as this is the same.

    Switches: adapters of peft with their weights in the sum, attention processors of diffusers with their scale, FreeU;
    a module's own `graph_key`.
    """
    places: list[int] = []
    switches: list[Any] = []
    for one in module.modules():
        own = vars(one)
        if "graph_key" in own:
            switches.append(own["graph_key"])
        for held in (own["_parameters"], own["_buffers"]):
            places.extend(weight.data_ptr() for weight in held.values() if weight is not None)
        # diffusers' models have a method of this name.
        if isinstance(getattr(type(one), "disable_adapters", None), property):
            merged, scaling = own.get("merged_adapters"), own.get("scaling")
            switches.append((one.disable_adapters, str(one.active_adapters), str(merged), str(scaling)))
        processor = own.get("processor") or own["_modules"].get("processor")
        if processor is not None:
            switches.append((id(processor), str(getattr(processor, "scale", None))))
        if "s1" in own:
            switches.append(tuple(own.get(name) for name in ("s1", "s2", "b1", "b2")))
    return hash(tuple(places)), hash(tuple(switches)), module.training
