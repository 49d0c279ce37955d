"""The harness: gate first, then all providers of a case side by side, in rounds, so that noise meets all alike."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.ops import use_backend
from pgraft_fast_benchmarks import readings
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.heap import settle
from pgraft_fast_benchmarks.meters import Board, op_columns
from pgraft_fast_benchmarks.readings import Readings, Verdicts
from pgraft_fast_benchmarks.timing import percentile, timer_of

Gate = Callable[[], str | None]
Row = dict[str, Any]
Each = Callable[[str, list[Row]], None]


@dataclass(frozen=True)
class Settings:
    """device: of all tensors. backend: of "ours", None by device. only: cases with this in their label.

    size: "full"; "quick", the same sizes with few readings and nothing compiled; "smoke", tiny: whether it runs.
    rounds: readings of a provider; fewer, but at least `Case.least`, where they would take longer than `budget` s.
    """

    device: torch.device
    backend: str | None = None
    size: str = "full"
    only: str = ""

    @property
    def rounds(self) -> int:
        return self.by_size(60, 20, 5)

    @property
    def budget(self) -> float:
        return self.by_size(2.0, 0.4, 0.1)

    @property
    def small(self) -> bool:
        """Whether sizes are tiny."""
        return self.size == "smoke"

    @property
    def short(self) -> bool:
        """Whether nothing may take long."""
        return self.size != "full"

    def by_size(self, full: Any, quick: Any, smoke: Any) -> Any:
        """One of three."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.size]


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
    all_cases = list(cases)
    chosen = [case for case in all_cases if settings.only in case.label]
    if not chosen:
        raise InputError(f"--only {settings.only!r}: in no label; known: {'; '.join(case.label for case in all_cases)}")
    return run_parts([(case.label, partial(measure, case, settings, bandwidth)) for case in chosen], settings, each)


def run_parts(
    parts: Iterable[tuple[str, Callable[[], Iterable[Row]]]], settings: Settings, each: Each
) -> dict[str, Any]:
    """The rows of the parts with `settings.only` in their names, and what they were made on. each: told the name and
    the rows of a part when it is done, or each row where a part does not give them as a list. Raises InputError where
    there are none.
    """
    rows: list[Row] = []
    all_parts = list(parts)
    chosen = [(name, part) for name, part in all_parts if settings.only in name]
    if not chosen:
        raise InputError(f"--only {settings.only!r}: in no part; known: {'; '.join(name for name, _ in all_parts)}")
    for name, part in chosen:
        measured = part()
        for batch in [measured] if isinstance(measured, list) else ([row] for row in measured):
            each(name, batch)
            rows += batch
    of_run = {"backend": settings.backend or "by device", "size": settings.size}
    return {**environment(settings.device), **of_run, "rows": rows}


def measure(case: Case, settings: Settings, bandwidth: float | None = None) -> list[Row]:
    """One row a provider. bandwidth: of a copy in bytes a second, read and written; rows then tell their share."""
    settle(settings.device)
    with torch.no_grad():
        try:
            providers = case.build(settings)
        except Exception as error:
            if not case.optional:
                raise
            return [_row(case, "ours", readings.skipped(error), {})]
        verdicts: Verdicts = {}
        for provider in providers:
            readings.check(provider, verdicts)
        seconds = readings.take(providers, verdicts, case, settings)
        rows = []
        for provider in providers:
            row = _row(case, provider.name, verdicts[provider.name], seconds[provider.name])
            if case.bytes is not None:
                row["bytes"] = case.bytes if provider.bytes is None else provider.bytes
            more = readings.tried(provider, verdicts, lambda: _more(provider, row, settings, bandwidth))  # noqa: B023
            if more is None and row["gate"] == "ok":
                row = _row(case, provider.name, verdicts[provider.name], {})
            rows.append(row | (more or {}))
        ours = seconds.get("ours", {})
        for row in rows:
            row["times_ours"] = _paired(seconds[row["provider"]], ours) if row["gate"] == "ok" else None
    return rows + [_best(rows, name, of) for name, of in case.best_of.items()]


def _paired(theirs: Readings, ours: Readings) -> float | None:
    """The median over the rounds of how many times as long as ours it took; what slows a round slows both."""
    both = [theirs[number] / ours[number] for number in theirs if number in ours]
    return round(percentile(both, 0.5), 4) if both else None


def copy_bandwidth(settings: Settings) -> float | None:
    """Bytes a second that a large copy reads and writes, on a GPU."""
    if settings.device.type != "cuda":
        return None
    x = torch.zeros(2**28, device=settings.device)
    y, timer = torch.empty_like(x), timer_of(settings.device, settings.size)
    calls = timer.repeats(lambda: y.copy_(x))
    return 2 * x.nbytes / percentile([timer.read(lambda: y.copy_(x), calls) for _ in range(20)], 0.5)


def _row(case: Case, provider: str, verdict: tuple[str, str], seconds: Readings) -> Row:
    gate, note = verdict
    row: Row = {
        "op": case.op, "case": case.case, "shape": list(case.shape), "dtype": case.dtype, **case.columns,
        "provider": provider, "gate": gate,
    }  # fmt: skip
    timed = list(seconds.values()) if gate == "ok" else []
    for name, share in (("p50_ms", 0.5), ("p20_ms", 0.2), ("p80_ms", 0.8)):
        value = percentile(timed, share)
        row[name] = None if math.isnan(value) else round(1e3 * value, 6)
    row["readings"] = len(timed)
    return row | ({"note": note} if note else {})


def _more(provider: Provider, row: Row, settings: Settings, bandwidth: float | None) -> Row:
    """The columns of the provider's own, and those of an operation on a GPU."""
    with use_backend(provider.backend):
        own = {} if provider.columns is None else provider.columns()
        own |= {name: round(3.6e6 * count / row["p50_ms"], 1) for name, count in provider.per_hour.items()}
        # A smoke run tells whether all runs, under a memory checker too, beside which there is no profiler.
        if bandwidth is None or provider.own_clock or settings.small:
            return own
        board, seconds = Board.of(settings.device), settings.by_size(0.5, 0.0, 0.0)
        of_op = op_columns(
            provider.run,
            provider.steps,
            settings.device,
            board,
            seconds if provider.reset is None else 0.0,
            partial(readings.reset, provider),
        )
    share = row["bytes"] / (1e-3 * row["p50_ms"]) / bandwidth if "bytes" in row else None
    return {"share_of_copy_bandwidth": None if share is None else round(share, 4), **of_op, **own}


def _best(rows: list[Row], name: str, of: tuple[str, ...]) -> Row:
    """The row of the fastest of these providers under another name."""
    known = [row for row in rows if row["provider"] in of]
    timed = [row for row in known if row["p50_ms"] is not None]
    best = min(timed, key=lambda row: row["p50_ms"]) if timed else known[0]
    return {**best, "provider": name, "note": f"the faster one, {best['provider']}"}
