"""Write the README's tables from benchmarks/results, or with --check say whether they agree.

demo.json is what `pgraft-fast demo --json` wrote, ops.json and sampling.json what `pgraft-fast bench ops --json` and
`bench sampling --json` did on the machine that they name.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgraft_fast.commands.demo import demo_table, summarise

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PEERS = ("diffusers", "compile", "torch", "eager", "copy")


def demo() -> str:
    """Rewards and distances of the demo."""
    table = demo_table(summarise(_read("demo.json")["rows"]), None)
    return _markdown(table.header, table.rows)


def ops() -> str:
    """Our milliseconds, and how many times as long the others take."""
    cases: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in _read("ops.json")["rows"]:
        if row["dtype"] == "float32" and row["p50_ms"] is not None:
            shape = "x".join(map(str, row["shape"]))
            cases.setdefault((f"{row['op']} {row['case']}", shape), {})[row["provider"]] = row["p50_ms"]
    rows = []
    for (name, shape), times in cases.items():
        ratios = [f"{times[peer] / times['ours']:.3g}x" if peer in times else "" for peer in PEERS]
        rows.append([name, shape, f"{times['ours']:.3g}", *ratios])
    return _markdown(["operation", "shape", "ms", *PEERS], rows)


def sampling() -> str:
    """Time outside of the models in a pipeline call, diffusers' and ours."""
    cases: dict[str, dict[str, Any]] = {}
    for row in _read("sampling.json")["rows"]:
        if row["p50_ms"] is not None:
            cases.setdefault(f"{row['case']}, batch {row['batch']}", {})[row["provider"]] = row
    rows = []
    for name, by in cases.items():
        if {"diffusers", "ours"} <= set(by):
            theirs, mine = by["diffusers"], by["ours"]
            rest = [f"{row['non_model_ms']:.3g} ms ({row['non_model_share']:.1%})" for row in (theirs, mine)]
            ratio = theirs["non_model_ms"] / mine["non_model_ms"]
            rows.append([name, *rest, f"{ratio:.1f}x", f"{theirs['p50_ms'] / mine['p50_ms']:.3f}x"])
    return _markdown(["pipeline", "diffusers' rest", "our rest", "ratio", "whole call"], rows)


TABLES = {"demo": demo, "ops": ops, "sampling": sampling}


def updated(text: str) -> str:
    """The README with the tables in their places."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} table: make readme -->\n", f"<!-- end of {name} table -->\n"
        head, rest = text.split(begin)
        text = head + begin + table() + end + rest.split(end)[1]
    return text


def main() -> int:
    """Exit status 1 where --check finds a difference."""
    text = README.read_text()
    if "--check" in sys.argv:
        return int(updated(text) != text)
    README.write_text(updated(text))
    return 0


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
