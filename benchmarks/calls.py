"""Whole calls of a pipeline under a clock, and in them the calls of its models."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch

from pgraft_fast_benchmarks.harness import Row
from pgraft_fast_benchmarks.meters import Board, launches_of, peak_memory
from pgraft_fast_benchmarks.models import denoiser_name
from pgraft_fast_benchmarks.timing import percentile

_SEED = 11
# Calls that only count something are left out where they would take longer, in seconds.
_LONG = 5.0


@dataclass
class ModelClock:
    """Time inside of functions that it is put around: by events of a GPU, read at the end, or by the host's clock."""

    on_gpu: bool = False
    calls: int = 0
    _seconds: float = 0.0
    _events: list[tuple[Any, Any]] = field(default_factory=list)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.on_gpu:
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._events.append((began, ended))
                began.record()
                result = function(*args, **kwargs)
                ended.record()
                return result
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._seconds += time.perf_counter() - start
            return result

        return timed

    @property
    def seconds(self) -> float:
        """So far; the GPU must have been waited for."""
        return self._seconds + 1e-3 * sum(began.elapsed_time(ended) for began, ended in self._events)


@contextmanager
def watched(modules: Sequence[Any], clock: ModelClock) -> Iterator[None]:
    """Their forward runs under the clock."""
    before = [(module, vars(module).get("forward")) for module in modules]
    for module in modules:
        module.forward = clock.around(module.forward)
    try:
        yield
    finally:
        for module, forward in before:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def models_of(pipe: Any) -> list[Any]:
    """Its denoiser, text encoders and image decoder."""
    texts = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    return [module for module in (getattr(pipe, denoiser_name(pipe)), *texts, decoder) if module is not None]


@dataclass(frozen=True)
class Reading:
    """One call, in seconds; host: until it returned. models: inside of them, where that is known."""

    seconds: float
    host: float
    models: float | None = None
    model_calls: int | None = None


class PipelineCall:
    """The same call again and again. make: builds the pipeline, at the first one.

    arguments: of the call; without "latents" it gets a generator with a fixed seed. batch, steps: that they ask for.
    """

    def __init__(
        self, make: Callable[[], Any], arguments: dict[str, Any], device: torch.device, batch: int, steps: int
    ) -> None:
        self._make, self._arguments, self._device = make, arguments, device
        self._batch, self._steps = batch, steps
        self._on_gpu = device.type == "cuda"
        self._pipe: Any = None
        self._readings: list[Reading] = []
        self._joules = 0.0
        self._energy = Board.of(device)
        self._peak: float | None = None

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        if self._pipe is None:
            self._pipe = self._make()
        return self._pipe

    def pictures(self, output_type: str) -> Any:
        """What the call returns."""
        return self.pipe(**self._prepared() | {"output_type": output_type}).images

    def twice(self, output_type: str) -> list[Any]:
        """Pictures of the first call and of a second one, which are made in different ways. Also tells the memory."""
        pipe = self.pipe
        with peak_memory(pipe, self._device) as memory:
            pictures = [self.pictures(output_type)]
            memory.warm()
            pictures.append(self.pictures(output_type))
        self._peak = memory.megabytes
        return pictures

    def __call__(self) -> float:
        """One reading; its seconds."""
        reading = self._on_cuda() if self._on_gpu else self._on_host()
        self._readings.append(reading)
        return reading.seconds

    def columns(self) -> Row:
        """What the readings tell beside their times."""
        seconds = percentile([reading.seconds for reading in self._readings], 0.5)
        row: Row = {"images_per_s": _rounded(self._batch / seconds)}
        if not self._on_gpu:
            return row | _shares(self._readings)
        short = seconds < _LONG
        host = 1e3 * percentile([reading.host for reading in self._readings], 0.5)
        row |= {
            "images_per_gpu_hour": _rounded(3600.0 * self._batch / seconds),
            "model_calls_per_s": _rounded(self._steps / seconds),
            "host_ms_per_trajectory": _rounded(host),
            "host_ms_per_step": _rounded(host / self._steps),
            "peak_memory_mb": self._peak,
            "energy_j_per_image": self._joules_per_image(),
            **self._energy.clocks(),
            "launches_per_image": launches_of(self._once, self._batch) if short else None,
        }
        mode = self._mode()
        # In a graph or in a compiled model no event of the host's can be put around the model.
        seen = [self._on_cuda(ModelClock(on_gpu=True))] if short and mode in {None, "eager"} else []
        return row | _shares(seen) | ({} if mode is None else {"mode": mode})

    def _once(self) -> None:
        self.pipe(**self._prepared())

    def _prepared(self) -> dict[str, Any]:
        if "latents" in self._arguments:
            return dict(self._arguments)
        return {**self._arguments, "generator": torch.Generator().manual_seed(_SEED)}

    def _on_host(self) -> Reading:
        arguments, pipe, clock = self._prepared(), self.pipe, ModelClock()
        with watched(models_of(pipe), clock):
            began = time.perf_counter()
            pipe(**arguments)
            taken = time.perf_counter() - began
        return Reading(taken, taken, clock.seconds, clock.calls)

    def _on_cuda(self, clock: ModelClock | None = None) -> Reading:
        """With a clock the models are timed too, and the reading is for that alone."""
        arguments, pipe = self._prepared(), self.pipe
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with watched([] if clock is None else models_of(pipe), clock or ModelClock()):
            before = self._energy.joules()
            torch.cuda.synchronize(self._device)
            began.record()
            start = time.perf_counter()
            pipe(**arguments)
            host = time.perf_counter() - start
            ended.record()
            ended.synchronize()
        seconds = 1e-3 * began.elapsed_time(ended)
        if clock is not None:
            return Reading(seconds, host, clock.seconds, clock.calls)
        after = self._energy.joules()
        self._joules += math.nan if before is None or after is None else after - before
        return Reading(seconds, host)

    def _joules_per_image(self) -> float | None:
        """None without a meter, and for less than a second in all: the meter moves in steps of some 0.1 s."""
        is_enough = sum(reading.seconds for reading in self._readings) >= 1.0 and not math.isnan(self._joules)
        return _rounded(self._joules / (self._batch * len(self._readings))) if is_enough else None

    def _mode(self) -> str | None:
        """How an accelerated pipeline runs its steps; None for another one."""
        state = vars(self.pipe).get("_pgraft_fast")
        if state is None:
            return None
        chosen = getattr(state.runner, "chosen", {})
        return ", ".join(sorted(set(chosen.values()))) or str(state.runner.mode)


def _shares(readings: Sequence[Reading]) -> Row:
    """Milliseconds inside and outside of the models, and the second of these over the first."""
    times = [(call.models, call.seconds - call.models, call.model_calls) for call in readings if call.models]
    if not times:
        return {}
    return {
        "model_ms": _rounded(1e3 * percentile([inside for inside, _, _ in times], 0.5)),
        "non_model_ms": _rounded(1e3 * percentile([outside for _, outside, _ in times], 0.5)),
        "non_model_share": _rounded(percentile([outside / inside for inside, outside, _ in times], 0.5)),
        "model_calls": times[-1][2],
    }


def _rounded(value: float) -> float:
    """To six digits."""
    return float(f"{value:.6g}")
