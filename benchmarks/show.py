"""A result as text: tables for a person, CSV for a file."""

import csv
import io
from itertools import groupby
from typing import Any

from pgraft_fast_benchmarks.goals import GOALS
from pgraft_fast_benchmarks.harness import Row

_SHOWN = ("diffusers", "compile", "eager", "torch", "copy")
_COLUMNS = (
    "op", "case", "shape", "dtype", "provider", "gate", "p50_ms", "p20_ms", "p80_ms", "readings", "bytes",
    "share_of_copy_bandwidth", "launches_per_step", "note",
)  # fmt: skip


def times(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: our median in ms, then how many times as long each provider takes."""
    rows = [
        _times_row(label, {row["provider"]: row for row in found}) for label, found in groupby(result["rows"], _label)
    ]
    return ["case", "ours ms", *_SHOWN], rows


def goals(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each goal with what was measured. Empty where no case has the size of a goal."""
    rows = []
    for goal in GOALS:
        ratio = goal.ratio(result["rows"])
        if ratio is not None:
            name = f"{goal.op} {goal.case} {_shape(goal.shape)}"
            rows.append([name, goal.text, f"{ratio:.2f}x", "met" if goal.met(ratio) else "missed"])
    return ["case", "goal", "measured", "verdict"], rows


def to_csv(result: dict[str, Any]) -> bytes:
    """A line a row, each with where and of what it was measured."""
    where = {name: result[name] for name in ("device", "threads", "backend", "commit", "dirty")} | result["versions"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, *where], restval="", lineterminator="\n")
    writer.writeheader()
    for row in result["rows"]:
        writer.writerow({**row, "shape": _shape(row["shape"]), **where})
    return text.getvalue().encode()


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape))


def _label(row: Row) -> str:
    dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    return f"{row['op']} {row['case']}{dtype} {_shape(row['shape'])}"


def _times_row(label: str, by_provider: dict[str, Row]) -> list[str]:
    mine = by_provider["ours"]["p50_ms"]
    cells = [label, by_provider["ours"]["gate"] if mine is None else f"{mine:.4g}"]
    for name in _SHOWN:
        row = by_provider.get(name)
        if row is None:
            cells.append("-")
        elif row["p50_ms"] is None or mine is None:
            cells.append(row["gate"])
        else:
            cells.append(f"{row['p50_ms'] / mine:.2f}x")
    return cells
