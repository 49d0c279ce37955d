"""`pgraft-fast bench`: this package against diffusers, torch.compile and plain torch, on this machine."""

import importlib
import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.ops import use_backend
from pgraft_fast.report import Table
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast_benchmarks import records, show
from pgraft_fast_benchmarks.harness import Settings
from pgraft_fast_benchmarks.run import module_of

BENCHES = ("ops", "sampling", "round", "ranks", "invert", "quality", "methods", "cut")
KNOWN = (*BENCHES, "scaling", "fleet", "all", "plot")
SIZES = ("full", "quick", "smoke")
_NEED_DIFFUSERS = ("sampling", "methods", "cut")
_TIMES = (
    "Medians; the other columns say how many times as long a provider takes, the median over rounds. skipped: it could "
    "not run here; fail: its result was wrong, so it has no time."
)
_NO_GOALS = "The goals are for full sizes: no verdict."


def bench(
    what: str, *, csv: Path | None, size: str, backend: str | None, threads: int, only: str = ""
) -> dict[str, Any]:
    """Measure and show; "failed" in the result counts red gates. Raises InputError, BackendError.

    Rows are appended to `csv`, and without one those of a full run in a checkout to benchmarks/results/<device>.csv.
    """
    if what not in KNOWN:
        raise InputError(f"bench {what!r} is unknown; known: {', '.join(KNOWN)}")
    terminal = Terminal()
    if what == "plot":
        return _plot(csv, terminal)
    if what == "fleet":
        return _fleet(terminal)
    with use_backend(backend):
        pass
    if what in _NEED_DIFFUSERS and not _has_diffusers():
        raise InputError(f"bench {what} needs diffusers, which is missing: pip install 'pgraft-fast[bench]'")
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(device, backend, size, only)
    result: dict[str, Any] = {"bench": what, "rows": []}
    for name in BENCHES if what == "all" else (what,):
        if name in _NEED_DIFFUSERS and not _has_diffusers():
            terminal.line(f"{name}: skipped, diffusers is missing")
            continue
        measured = _measure(name, settings, terminal)
        _record(csv, measured, settings, terminal)
        result |= {key: value for key, value in measured.items() if key not in ("bench", "rows")}
        result["rows"] += measured["rows"] if what == name else [{"bench": name, **row} for row in measured["rows"]]
    result["failed"] = sum(row["gate"] == "fail" for row in result["rows"])
    return result


def _measure(name: str, settings: Settings, terminal: Terminal) -> dict[str, Any]:
    module = importlib.import_module(module_of(name))

    def each(label: str, rows: list[dict[str, Any]]) -> None:
        terminal.line(f"{label}: {', '.join(_summary(row) for row in rows)}")
        for row in rows:
            if row["gate"] != "ok":
                terminal.line(f"  {row['provider']} {row['gate']}: {row.get('note', '')}")

    result = {"bench": name, **module.run(settings, each)}
    _show(result, module, terminal)
    return result


def _show(result: dict[str, Any], module: ModuleType, terminal: Terminal) -> None:
    if module.SHOWN:
        header, rows = show.times(result, module.SHOWN)
        terminal.table(f"{result['device']}: {result['bench']}", Table(header, rows, _TIMES))
    if module.DETAILS:
        header, rows = show.details(result, module.DETAILS)
        terminal.table("In each call", Table(header, rows, module.DETAILS_NOTE))
    header, rows = show.goals(result, module.GOALS)
    terminal.table("Goals", Table(header, rows)) if rows else terminal.line(_NO_GOALS)


def _record(csv: Path | None, result: dict[str, Any], settings: Settings, terminal: Terminal) -> None:
    if csv is None and settings.size == "full" and result["commit"] is not None:
        csv = records.file_of(result["device"])
    if csv is not None:
        records.append(csv, records.rows_of(result))
        terminal.line(f"{len(result['rows'])} rows added to {csv}")


def _plot(source: Path | None, terminal: Terminal) -> dict[str, Any]:
    from pgraft_fast_benchmarks import plots

    rows = records.all_rows() if source is None else records.read(source)
    folder = (records.RESULTS if source is None else source.parent) / "plots"
    drawn = plots.draw(rows, folder)
    for path in drawn:
        terminal.line(str(path))
    if not drawn:
        raise InputError(f"{source or records.RESULTS}: no row that could be drawn; run pgraft-fast bench first")
    return {"bench": "plot", "files": [str(path) for path in drawn], "failed": 0}


def _fleet(terminal: Terminal) -> dict[str, Any]:
    """Computed, not measured."""
    from pgraft_fast_benchmarks import fleet_tables

    tables = fleet_tables.tables()
    for name, table in tables.items():
        terminal.table(name, table)
    return {"bench": "fleet", "tables": {name: asdict(table) for name, table in tables.items()}, "failed": 0}


def _has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def _summary(row: dict[str, Any]) -> str:
    mode = f" ({row['mode']})" if row.get("mode") else ""
    if row.get("model_error") is not None and row["provider"] == "model":
        mode = f" ({100 * row['model_error']:+.0f} %)"
    time = row.get("p50_ms")
    return f"{row['provider']} {row['gate'] if time is None else format(time, '.4g')}{mode}"
