"""The harness: gate first, then all providers of a case side by side, in rounds, so that noise meets all alike."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pgraft_fast.ops import use_backend
from pgraft_fast_benchmarks.timing import Timer, launches, percentile, timer_of

Gate = Callable[[], str | None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """device: of all tensors. backend: of "ours", None by device. quick: tiny sizes, few readings, no compiler.

    rounds: readings of a provider; fewer, but at least 5, where they would take longer than `budget` seconds.
    """

    device: torch.device
    backend: str | None = None
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 5 if self.quick else 60

    @property
    def budget(self) -> float:
        return 0.1 if self.quick else 2.0


@dataclass(frozen=True)
class Provider:
    """One way to do the work. run: what is timed. gate: what is wrong with its result, or None.

    steps: steps of a solver in one run; times are of one step. reset: done before each reading, outside of it.
    backend: forced while it runs. optional: left out with a note, where it cannot run at all.
    bytes: its least traffic, where that is not the case's.
    """

    name: str
    run: Callable[[], Any]
    gate: Gate
    steps: int = 1
    reset: Callable[[], object] | None = None
    backend: str | None = None
    optional: bool = False
    bytes: int | None = None


@dataclass(frozen=True)
class Case:
    """A named size of an operation. bytes: the least that it can read and write. build: makes tensors and providers.

    best_of: {name: providers}, a row more that repeats the fastest of these.
    """

    op: str
    case: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    build: Callable[[Settings], Sequence[Provider]]
    best_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """In one line."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.op} {self.case}{dtype} {'x'.join(map(str, self.shape))}"


def measure(case: Case, settings: Settings, bandwidth: float | None = None) -> list[Row]:
    """One row a provider. bandwidth: of a copy in bytes a second, read and written; rows then tell their share."""
    with torch.no_grad():
        providers = case.build(settings)
        verdicts = {provider.name: _verdict(provider) for provider in providers}
        passed = [provider for provider in providers if verdicts[provider.name][0] == "ok"]
        seconds = _rounds(passed, settings)
        rows = []
        for provider in providers:
            row = _row(case, provider.name, *verdicts[provider.name], seconds.get(provider.name, []))
            row["bytes"] = case.bytes if provider.bytes is None else provider.bytes
            if provider in passed:
                row |= _on_gpu(provider, row, settings, bandwidth)
            rows.append(row)
    return rows + [_best(rows, name, of) for name, of in case.best_of.items()]


def copy_bandwidth(settings: Settings) -> float | None:
    """Bytes a second that a large copy reads and writes, on a GPU."""
    if settings.device.type != "cuda":
        return None
    x = torch.zeros(2**28, device=settings.device)
    y, timer = torch.empty_like(x), timer_of(settings.device, settings.quick)
    calls = timer.repeats(lambda: y.copy_(x))
    return 2 * x.nbytes / percentile([timer.read(lambda: y.copy_(x), calls) for _ in range(20)], 0.5)


def _verdict(provider: Provider) -> tuple[str, str]:
    """(ok, fail or skipped; why)."""
    try:
        with use_backend(provider.backend):
            _reset(provider)
            wrong = provider.gate()
    except Exception as error:
        if not provider.optional:
            raise
        return "skipped", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
    return ("ok", "") if wrong is None else ("fail", wrong)


def _rounds(providers: Sequence[Provider], settings: Settings) -> dict[str, list[float]]:
    """Seconds a step, a reading a round; the order of the providers turns from round to round."""
    timer = timer_of(settings.device, settings.quick)
    plan = {provider.name: _plan(provider, timer, settings) for provider in providers}
    seconds: dict[str, list[float]] = {provider.name: [] for provider in providers}
    with _no_collection():
        for number in range(settings.rounds):
            turn = number % max(1, len(providers))
            for provider in (*providers[turn:], *providers[:turn]):
                calls, readings = plan[provider.name]
                if number * readings // settings.rounds != (number + 1) * readings // settings.rounds:
                    seconds[provider.name].append(_read(provider, timer, calls))
    return seconds


def _plan(provider: Provider, timer: Timer, settings: Settings) -> tuple[int, int]:
    """Calls in a reading, and readings, spread over the rounds."""
    with use_backend(provider.backend):
        # What must be reset cannot be called twice in a reading.
        calls = timer.repeats(provider.run) if provider.reset is None else 1
    once = _read(provider, timer, calls) * calls * provider.steps
    return calls, min(settings.rounds, max(5, int(settings.budget / max(once, 1e-9))))


def _read(provider: Provider, timer: Timer, calls: int) -> float:
    """A run before it, not timed, brings back to a CPU's caches what other providers drove out."""
    with use_backend(provider.backend):
        _reset(provider)
        provider.run()
        _reset(provider)
        return timer.read(provider.run, calls) / provider.steps


def _reset(provider: Provider) -> None:
    if provider.reset is not None:
        provider.reset()


def _row(case: Case, provider: str, gate: str, note: str, seconds: list[float]) -> Row:
    row: Row = {
        "op": case.op, "case": case.case, "shape": list(case.shape), "dtype": case.dtype, "provider": provider,
        "gate": gate,
    }  # fmt: skip
    for name, share in (("p50_ms", 0.5), ("p20_ms", 0.2), ("p80_ms", 0.8)):
        value = percentile(seconds, share)
        row[name] = None if math.isnan(value) else round(1e3 * value, 6)
    row["readings"] = len(seconds)
    return row | ({"note": note} if note else {})


def _on_gpu(provider: Provider, row: Row, settings: Settings, bandwidth: float | None) -> Row:
    if bandwidth is None:
        return {}
    _reset(provider)
    with use_backend(provider.backend):
        started = launches(provider.run)
    share = row["bytes"] / (1e-3 * row["p50_ms"]) / bandwidth
    return {"share_of_copy_bandwidth": round(share, 4), "launches_per_step": started / provider.steps}


def _best(rows: list[Row], name: str, of: tuple[str, ...]) -> Row:
    """The row of the fastest of these providers under another name."""
    known = [row for row in rows if row["provider"] in of]
    timed = [row for row in known if row["p50_ms"] is not None]
    best = min(timed, key=lambda row: row["p50_ms"]) if timed else known[0]
    return {**best, "provider": name, "note": f"the faster one, {best['provider']}"}


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
