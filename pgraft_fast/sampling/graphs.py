"""CUDA graphs: a function of tensors is captured once and replayed.

A captured function is found by its key and the shapes of its inputs; its weights may change in place. Each graph has a
memory pool of its own, so that dropping it frees its memory; beyond the memory limit the one unused for longest goes.
A function is run before it is captured, under the eyes of `HostTraffic`: one that reads values back is not captured.
Where memory ends during a capture the caller is told and runs the function plainly. After a capture that failed for
another reason torch's allocator is no longer known to be whole: this process captures nothing more.
"""

import contextlib
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import is_out_of_memory
from pgraft_fast.sampling.host_traffic import HostTraffic, HostTrafficError

_LOG = logging.getLogger(__name__)
# One a device: torch gives memory back to a capture on the stream that it was taken on.
_side_streams: dict[torch.device, torch.cuda.Stream] = {}
_failed: list[str] = []

Function = Callable[[list[Tensor], list[torch.Generator]], list[Tensor]]


@dataclass
class Captured:
    """One graph, its input and output buffers, its generators, and what it must keep alive."""

    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]
    generators: list[torch.Generator]
    bytes: int
    traffic: HostTraffic | None = None
    kept: Any = None

    @property
    def is_stale(self) -> bool:
        """Whether what it was made of has changed on the host."""
        return self.traffic is not None and self.traffic.changed

    def replay(self, inputs: Sequence[Tensor], generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Outputs for these inputs, copied out of the buffers; the generators advance as in a plain run."""
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        for own, generator in zip(self.generators, generators, strict=True):
            own.set_state(generator.get_state())
        self.graph.replay()
        for own, generator in zip(self.generators, generators, strict=True):
            generator.set_state(own.get_state())
        return [output.clone() for output in self.outputs]


@dataclass
class GraphCache:
    """Captured functions, the least recently used one dropped first beyond `memory_limit` bytes (None: no limit)."""

    memory_limit: int | None = None
    _held: "OrderedDict[Hashable, Captured]" = field(default_factory=OrderedDict)
    _refused: set[Hashable] = field(default_factory=set)

    def run(
        self,
        key: Hashable,
        function: Function,
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
        keep: Callable[[], Any] = lambda: None,
        compiled: bool = False,
    ) -> list[Tensor] | None:
        """function(inputs, generators) by replaying its graph; None where it could not be captured, which is logged.

        The function must be the same for the same key, and draw only from the default generator of the device or from
        `generators`. keep(): what the graph reads besides its inputs and weights, asked after the first run and held as
        long as the graph. compiled: whether a compiler is at work in it, which does not bear to be watched.
        """
        whole = _whole(key, inputs)
        captured = self._held.get(whole)
        if captured is not None and captured.is_stale:
            captured = None
        if captured is None:
            if _failed or whole in self._refused:
                return None
            try:
                captured = self._capture(function, inputs, generators, compiled)
            except HostTrafficError as error:
                self._refused.add(whole)
                _LOG.warning(f"no CUDA graph can be made of this shape, which runs without: {error}")
                return None
            except CaptureError as error:
                _failed.append(str(error))
                _LOG.warning(f"{error}; this process goes on without CUDA graphs")
                return None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.clear()
                self._refused.add(whole)
                _LOG.warning("memory did not suffice to capture a CUDA graph: this shape runs without")
                return None
            captured.kept = keep()
            self._held[whole] = captured
            self._shrink()
        self._held.move_to_end(whole)
        return captured.replay(inputs, generators)

    def kept(self, key: Hashable, inputs: Sequence[Tensor]) -> Any:
        """What `keep` gave for the graph of `run` with this key and such inputs."""
        return self._held[_whole(key, inputs)].kept

    def captures(self, device: torch.device) -> bool:
        """Whether there are graphs on this device."""
        return device.type == "cuda"

    def clear(self) -> None:
        """Drop every graph."""
        self._held.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Memory held by the graphs."""
        return sum(captured.bytes for captured in self._held.values())

    def _shrink(self) -> None:
        while self.memory_limit is not None and len(self._held) > 1 and self.bytes > self.memory_limit:
            self._held.popitem(last=False)

    def _capture(
        self, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator], compiled: bool
    ) -> Captured:
        return capture(function, inputs, generators, compiled)


def _whole(key: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return key, tuple((tuple(value.shape), value.dtype, value.stride(), value.device) for value in inputs)


class CaptureError(Exception):
    """A function that runs could not be captured, for another reason than memory."""


def capture(
    function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator], compiled: bool = False
) -> Captured:
    """Warm up and capture function(inputs, generators) on copies of both; nothing of the caller's changes.

    compiled: see `GraphCache.run`. Raises HostTrafficError before anything is captured, CaptureError, and what the
    function raises when it runs.
    """
    device = inputs[0].device
    buffers = [value.clone() for value in inputs]
    own = [clone_generator(generator) for generator in generators]
    default = torch.cuda.get_rng_state(device)
    outer, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(outer)
    traffic, plain = HostTraffic(device), contextlib.nullcontext()
    try:
        with torch.cuda.stream(side):
            function(buffers, own)
            with plain if compiled else traffic.learned():
                function(buffers, own)
            if traffic:
                with traffic.repeated():
                    function(buffers, own)
        outer.wait_stream(side)
        torch.cuda.synchronize(device)
        # torch empties its cache when a capture begins, too: what that frees is not the graph's.
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        for generator in own:
            graph.register_generator_state(generator)
        try:
            # Other threads, of a reward say, may use the device meanwhile.
            recording = torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local")
            with _no_collection(), recording, traffic.repeated() if traffic else plain:
                outputs = function(buffers, own)
        except Exception as error:
            # Where the end of a capture raises, torch leaves its stream the current one.
            torch.cuda.set_stream(outer)
            _end_recording(device, pool)
            if is_out_of_memory(error):
                raise
            why = str(error.__context__ or error).partition("\n")[0]
            raise CaptureError(f"a CUDA graph could not be captured: {why}") from error
    finally:
        torch.cuda.set_rng_state(default, device)
    return Captured(graph, buffers, outputs, own, max(0, torch.cuda.memory_reserved(device) - before), traffic)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected before, not within: another graph may be in it, whose end no capture bears, or what is left
    of a backward pass, whose gradients end on the stream of then.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _end_recording(device: torch.device, pool: Any) -> None:
    """Where the end of a capture raises, torch's allocator still sends allocations to its pool and frees nothing."""
    index = torch.cuda.current_device() if device.index is None else device.index
    # It raises where the recording has ended.
    with contextlib.suppress(Exception):
        torch._C._cuda_endAllocateToPool(index, pool)


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]


def clone_generator(generator: torch.Generator) -> torch.Generator:
    """Another generator in the same state."""
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin


def weights_key(module: Any, switches_of: Callable[[Any], Hashable] = lambda part: None) -> tuple[Any, ...]:
    """Where a module's weights lie and what is switched on in it: a graph is valid as long as this is the same.

    Switches: a module's own `graph_key`, and switches_of(part) of each one within.
    """
    places: list[int] = []
    switches: list[Any] = []
    for part in module.modules():
        own = vars(part)
        # Asked before the switches of what lies within: a model that shares its network sets them here.
        switches.append((getattr(part, "graph_key", None), switches_of(part)))
        for held in (own["_parameters"], own["_buffers"]):
            places.extend(weight.data_ptr() for weight in held.values() if weight is not None)
    return hash(tuple(places)), hash(tuple(switches)), module.training
