"""The harness: gate first, then all providers of a case side by side, in rounds, so that noise meets all alike."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.ops import use_backend
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.timing import Timer, launches, percentile, timer_of

Gate = Callable[[], str | None]
Row = dict[str, Any]
Each = Callable[[str, list[Row]], None]
# (ok, fail or skipped; why).
Verdicts = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Settings:
    """device: of all tensors. backend: of "ours", None by device. quick: tiny sizes, few readings.

    only: cases with this in their label. rounds: readings of a provider; fewer, but at least `Case.least`, where they
    would take longer than `budget` seconds.
    """

    device: torch.device
    backend: str | None = None
    quick: bool = False
    only: str = ""

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
    bytes: its least traffic, where that is not the case's. own_clock: run is one reading, returns its seconds and is
    warm after the gate. columns: more columns of its row, asked for after the readings. per_hour: columns that tell how
    many of something that a run makes so many of are made in an hour.
    """

    name: str
    run: Callable[[], Any]
    gate: Gate
    steps: int = 1
    reset: Callable[[], object] | None = None
    backend: str | None = None
    optional: bool = False
    bytes: int | None = None
    own_clock: bool = False
    columns: Callable[[], Row] | None = None
    per_hour: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A named size of an operation. bytes: the least that it can read and write. build: makes tensors and providers.

    best_of: {name: providers}, a row more that repeats the fastest of these. columns: of all its rows.
    budget: seconds of a provider's readings, in place of the settings'. least: readings, whatever they take.
    optional: left out with a note, where it cannot be built.
    """

    op: str
    case: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int | None
    build: Callable[[Settings], Sequence[Provider]]
    best_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Row = field(default_factory=dict)
    budget: float | None = None
    least: int = 5
    optional: bool = False

    @property
    def label(self) -> str:
        """In one line."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.op} {self.case}{dtype} {'x'.join(map(str, self.shape))}"


def run_cases(cases: Iterable[Case], settings: Settings, each: Each, bandwidth: float | None = None) -> dict[str, Any]:
    """Measure those that the settings ask for. each: told the label and the rows of a case when it is done.

    Raises InputError where none is left.
    """
    rows: list[Row] = []
    known = list(cases)
    chosen = [case for case in known if settings.only in case.label]
    if not chosen:
        raise InputError(f"--only {settings.only!r}: in no label; known: {'; '.join(case.label for case in known)}")
    for case in chosen:
        found = measure(case, settings, bandwidth)
        each(case.label, found)
        rows += found
    told = {"backend": settings.backend or "by device", "quick": settings.quick}
    return {**environment(settings.device), **told, "rows": rows}


def measure(case: Case, settings: Settings, bandwidth: float | None = None) -> list[Row]:
    """One row a provider. bandwidth: of a copy in bytes a second, read and written; rows then tell their share."""
    with torch.no_grad():
        try:
            providers = case.build(settings)
        except Exception as error:
            if not case.optional:
                raise
            return [_row(case, "ours", *_skipped(error), [])]
        verdicts: Verdicts = {}
        for provider in providers:
            _gate(provider, verdicts)
        seconds = _rounds(providers, verdicts, case, settings)
        rows = []
        for provider in providers:
            row = _row(case, provider.name, *verdicts[provider.name], seconds[provider.name])
            if case.bytes is not None:
                row["bytes"] = case.bytes if provider.bytes is None else provider.bytes
            more = _tried(provider, verdicts, lambda: _more(provider, row, bandwidth))  # noqa: B023
            if more is None and row["gate"] == "ok":
                row = _row(case, provider.name, *verdicts[provider.name], [])
            rows.append(row | (more or {}))
    return rows + [_best(rows, name, of) for name, of in case.best_of.items()]


def copy_bandwidth(settings: Settings) -> float | None:
    """Bytes a second that a large copy reads and writes, on a GPU."""
    if settings.device.type != "cuda":
        return None
    x = torch.zeros(2**28, device=settings.device)
    y, timer = torch.empty_like(x), timer_of(settings.device, settings.quick)
    calls = timer.repeats(lambda: y.copy_(x))
    return 2 * x.nbytes / percentile([timer.read(lambda: y.copy_(x), calls) for _ in range(20)], 0.5)


def _gate(provider: Provider, verdicts: Verdicts) -> None:
    def check() -> None:
        with use_backend(provider.backend):
            _reset(provider)
            wrong = provider.gate()
        if wrong is not None:
            verdicts[provider.name] = ("fail", wrong)

    verdicts[provider.name] = ("ok", "")
    _tried(provider, verdicts, check)


def _tried(provider: Provider, verdicts: Verdicts, work: Callable[[], Any]) -> Any:
    """work() of a provider with a green gate. If it raises, an optional provider is skipped from here on."""
    if verdicts[provider.name][0] != "ok":
        return None
    try:
        return work()
    except Exception as error:
        if not provider.optional:
            raise
        verdicts[provider.name] = _skipped(error)
    if torch.cuda.is_available():
        # After the handler: the exception held the frames that hold the tensors.
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    return None


def _skipped(error: Exception) -> tuple[str, str]:
    return "skipped", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def _rounds(
    providers: Sequence[Provider], verdicts: Verdicts, case: Case, settings: Settings
) -> dict[str, list[float]]:
    """Seconds a step, a reading a round; the order of the providers turns from round to round."""
    timer = timer_of(settings.device, settings.quick)
    seconds: dict[str, list[float]] = {provider.name: [] for provider in providers}
    plan: dict[str, tuple[int, int]] = {}
    for provider in providers:
        found = _tried(provider, verdicts, lambda: _plan(provider, timer, case, settings, seconds))  # noqa: B023
        plan[provider.name] = found or (1, 0)
    # Those that are left out would leave the turns of the others uneven.
    passed = [provider for provider in providers if verdicts[provider.name][0] == "ok"]
    with _no_collection():
        for number in range(settings.rounds):
            turn = number % max(1, len(passed))
            for provider in (*passed[turn:], *passed[:turn]):
                calls, readings = plan[provider.name]
                if number * readings // settings.rounds != (number + 1) * readings // settings.rounds:
                    read = _tried(provider, verdicts, lambda: _read(provider, timer, calls))  # noqa: B023
                    seconds[provider.name] += [] if read is None else [read]
    return seconds


def _plan(
    provider: Provider, timer: Timer, case: Case, settings: Settings, seconds: dict[str, list[float]]
) -> tuple[int, int]:
    """Calls in a reading, and readings, spread over the rounds. With a clock of its own, the first one is made here."""
    with use_backend(provider.backend):
        # What must be reset cannot be called twice in a reading.
        calls = timer.repeats(provider.run) if provider.reset is None and not provider.own_clock else 1
    read = _read(provider, timer, calls)
    budget = settings.budget if case.budget is None else case.budget
    readings = min(settings.rounds, max(case.least, int(budget / max(read * calls * provider.steps, 1e-9))))
    if not provider.own_clock:
        return calls, readings
    seconds[provider.name].append(read)
    return calls, readings - 1


def _read(provider: Provider, timer: Timer, calls: int) -> float:
    with use_backend(provider.backend):
        _reset(provider)
        if provider.own_clock:
            return float(provider.run())
        # Not timed: brings back to a CPU's caches what other providers drove out.
        provider.run()
        _reset(provider)
        return timer.read(provider.run, calls) / provider.steps


def _reset(provider: Provider) -> None:
    if provider.reset is not None:
        provider.reset()


def _row(case: Case, provider: str, gate: str, note: str, seconds: list[float]) -> Row:
    row: Row = {
        "op": case.op, "case": case.case, "shape": list(case.shape), "dtype": case.dtype, **case.columns,
        "provider": provider, "gate": gate,
    }  # fmt: skip
    timed = seconds if gate == "ok" else []
    for name, share in (("p50_ms", 0.5), ("p20_ms", 0.2), ("p80_ms", 0.8)):
        value = percentile(timed, share)
        row[name] = None if math.isnan(value) else round(1e3 * value, 6)
    row["readings"] = len(timed)
    return row | ({"note": note} if note else {})


def _more(provider: Provider, row: Row, bandwidth: float | None) -> Row:
    """The columns of the provider's own, and those of an operation on a GPU."""
    with use_backend(provider.backend):
        found = {} if provider.columns is None else provider.columns()
        found |= {name: round(3.6e6 * count / row["p50_ms"], 1) for name, count in provider.per_hour.items()}
        if bandwidth is None:
            return found
        _reset(provider)
        started = launches(provider.run)
    share = row["bytes"] / (1e-3 * row["p50_ms"]) / bandwidth
    return {"share_of_copy_bandwidth": round(share, 4), "launches_per_step": started / provider.steps, **found}


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
