"""A result as tables for a person."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

from pgraft_fast_benchmarks.harness import Row

Table = tuple[list[str], list[list[str]]]


class Goal(Protocol):
    """A promise about a case. judge: what was measured, and the verdict; None where the case was not run."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...

    def judge(self, rows: list[Row]) -> tuple[str, str] | None: ...


def times(result: dict[str, Any], providers: Sequence[str]) -> Table:
    """Header and rows: our median in ms, then how many times as long each provider takes."""
    known = {row["provider"] for row in result["rows"]}
    shown = [name for name in providers if name in known]
    rows = [
        _times_row(label, {row["provider"]: row for row in case_rows}, shown)
        for label, case_rows in groupby(result["rows"], _label)
    ]
    return ["case", "ours ms", *shown], rows


def details(result: dict[str, Any], columns: dict[str, str]) -> Table:
    """Header and rows: of each provider with a green gate. columns: with their titles; those that say nothing go."""
    green = [row for row in result["rows"] if row["gate"] == "ok"]
    shown = [name for name in columns if any(row.get(name) is not None for row in green)]
    rows = [
        [f"{row['case']}, batch {row['batch']}", row["provider"], *(_cell(row.get(name)) for name in shown)]
        for row in green
    ]
    return ["case", "provider", *(columns[name] for name in shown)], rows


def goals(result: dict[str, Any], promised: Sequence[Goal]) -> Table:
    """Header and rows: each goal with what was measured. Empty where no case has the size of a goal."""
    judged = [(goal, goal.judge(result["rows"])) for goal in promised]
    rows = [[goal.name, goal.text, *judgement] for goal, judgement in judged if judgement is not None]
    return ["case", "goal", "measured", "verdict"], rows


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape))


def _label(row: Row) -> str:
    dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    return f"{row['op']} {row['case']}{dtype} {_shape(row['shape'])}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _times_row(label: str, by_provider: dict[str, Row], shown: Sequence[str]) -> list[str]:
    mine = by_provider["ours"]["p50_ms"]
    cells = [label, by_provider["ours"]["gate"] if mine is None else f"{mine:.4g}"]
    for name in shown:
        row = by_provider.get(name)
        if row is None:
            cells.append("-")
        elif row["p50_ms"] is None:
            cells.append(row["gate"])
        else:
            # Without a time of ours, the other's own.
            ratio = row.get("times_ours") or (None if mine is None else row["p50_ms"] / mine)
            cells.append(f"{row['p50_ms']:.4g} ms" if ratio is None else f"{ratio:.2f}x")
    return cells
