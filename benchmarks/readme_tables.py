"""Write the README's tables from benchmarks/results/*.csv and those of docs/scale.md, or with --check say whether they
agree.

Each table is that of the newest full runs of a device, one behind the other where there are several devices.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pgraft_fast.report.comparison_report import comparison_table
from pgraft_fast.report.demo_table import demo_table, summarise
from pgraft_fast_benchmarks import fleet_tables
from pgraft_fast_benchmarks.records import Row, all_rows, newest

ROOT = Path(__file__).parent.parent
README, SCALE = ROOT / "README.md", ROOT / "docs" / "scale.md"
_PEERS = ("diffusers", "compile", "torch", "eager", "copy")
_ROUND_PEERS = ("plain", "ours compile", "plain compile", "all rows", "ddpo")


def demo(rows: Sequence[Row]) -> str:
    """Rewards and distances of the demo."""
    runs = [row for row in newest(rows, "quality") if row.get("op") == "demo"]
    if not runs:
        return ""
    results = [{**row, "method": row["provider"], "reward_ci": [row["reward_low"], row["reward_high"]]} for row in runs]
    table = demo_table(summarise(results), None)
    return _markdown(table.header, table.rows)


def ops(rows: Sequence[Row]) -> str:
    """Our milliseconds, and how many times as long the others take."""
    lines = []
    for mine in _cases([row for row in newest(rows, "ops") if row["dtype"] == "float32"]):
        by = {row["provider"]: row for row in mine if row["gate"] == "ok"}
        if "ours" in by:
            ratios = [f"{by[peer]['times_ours']:.3g}x" if peer in by else "" for peer in _PEERS]
            lines.append(
                [f"{mine[0]['op']} {mine[0]['case']}", str(mine[0]["shape"]), f"{by['ours']['p50_ms']:.3g}", *ratios]
            )
    return _markdown(["operation", "shape", "ms", *_PEERS], lines)


def sampling(rows: Sequence[Row]) -> str:
    """Whole pipeline calls: time outside of the models, diffusers' and ours, and the whole call."""
    lines = []
    for mine in _cases(newest(rows, "sampling")):
        by = {row["provider"]: row for row in mine if row["gate"] == "ok"}
        if {"diffusers", "ours"} <= set(by) and by["ours"].get("non_model_ms"):
            pair = by["diffusers"], by["ours"]
            rest = [f"{row['non_model_ms']:.3g} ms ({row['non_model_share']:.1%})" for row in pair]
            ratio = pair[0]["non_model_ms"] / pair[1]["non_model_ms"]
            name = f"{mine[0]['case']}, batch {mine[0]['batch']}"
            lines.append([name, *rest, f"{ratio:.1f}x", f"{pair[0]['times_ours']:.3f}x"])
    return _markdown(["pipeline", "diffusers' rest", "our rest", "ratio", "whole call"], lines)


def rounds(rows: Sequence[Row]) -> str:
    """Whole rounds: samples an hour, and how many times as long the others take."""
    lines = []
    for mine in _cases(newest(rows, "round")):
        by = {row["provider"]: row for row in mine if row["gate"] == "ok"}
        if "ours" in by:
            ratios = [f"{by[peer]['times_ours']:.3g}x" if peer in by else "" for peer in _ROUND_PEERS]
            lines.append([mine[0]["case"], f"{by['ours']['samples_per_hour']:,.0f}", *ratios])
    return _markdown(["round", "samples per hour", *_ROUND_PEERS], lines)


def correction(rows: Sequence[Row]) -> str:
    """Distances of the digits flow and its correctors: mean and range over the seeds."""
    distances = [row for row in newest(rows, "quality") if row.get("op") == "distance"]
    if not distances:
        return ""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in distances:
        cases.setdefault((row["provider"], row["steps"], row.get("corrector_steps") or ""), []).append(row)
    lines = [
        [str(name), str(steps), str(own), f"{mine[0]['flops_per_image'] / 1e6:.3g}", _range(mine, "fd_data", 2),
         _range(mine, "swd", 3), _range(mine, "nearest", 2)]
        for (name, steps, own), mine in cases.items()
    ]  # fmt: skip
    floors = [_range(distances, f"{name}_floor", digits) for name, digits in (("fd", 2), ("swd", 3), ("nearest", 2))]
    lines.append(["another draw of the data", "", "", "", *floors])
    header = ["samples", "base steps", "corrector steps", "MFLOP per image", "FD", "sliced Wasserstein", "nearest"]
    return _markdown(header, lines)


def methods(rows: Sequence[Row]) -> str:
    """Methods and their controls at equal budgets. Rows without a label are of other recipes under the same names."""
    runs = [row for row in newest(rows, "methods") if row.get("op") == "methods" and row.get("label")]
    if not runs:
        return ""
    table = comparison_table(
        [{**row, "method": row["provider"], "gain_ci": [row.get("gain_low"), row.get("gain_high")]} for row in runs]
    )
    return _markdown(table.header, table.rows)


def cuts(rows: Sequence[Row]) -> str:
    """Of each world: the planned cut, and what a training at it and at the others reached."""
    lines = []
    for mine in _cases([row for row in newest(rows, "cut") if row.get("reached") is not None]):
        planned = next((row for row in mine if row["planned"]), None)
        graft, best = mine[0], max(mine, key=lambda row: row["reached"])
        judged = [row for row in mine if row.get("inside") is not None]
        level = graft.get("lowest_level")
        inside = f"{sum(bool(row['inside']) for row in judged)} of {len(judged)}" if judged else "-"
        lines.append([
            str(graft["case"]), str(graft["accepted"]), "-" if planned is None else f"{planned['cut']:g}",
            "-" if level is None else f"{level:.2g}", inside,
            "-" if planned is None else f"{planned['reached']:.4f}", f"{best['reached']:.4f} at {best['cut']:g}",
            "-" if planned is None else f"{planned['recall']:.2f}", f"{graft['recall']:.2f}",
            f"{100 * graft['plan_share']:.1f} %",
        ])  # fmt: skip
    header = [
        "world", "accepted", "planned cut", "t*", "inside the prediction", "reward there", "best of the cuts",
        "recall there", "recall of cut 0", "calls of the plan",
    ]  # fmt: skip
    return _markdown(header, lines)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "demo": demo, "ops": ops, "sampling": sampling, "round": rounds, "correction": correction,
    "methods": methods, "cut": cuts,
}  # fmt: skip


def updated(text: str, rows: Sequence[Row]) -> str:
    """The README with the tables in their places."""
    for name, table in TABLES.items():
        text = _replaced(text, name, _of_devices(table, rows))
    return text


def updated_scale(text: str) -> str:
    """docs/scale.md with what `bench fleet` computes in its places."""
    for name, table in fleet_tables.tables().items():
        text = _replaced(text, name, f"{_markdown(table.header, table.rows)}\n{table.note}\n")
    return text


def main() -> int:
    """Exit status 1 where --check finds a difference."""
    texts = {README: updated(README.read_text(), all_rows()), SCALE: updated_scale(SCALE.read_text())}
    if "--check" in sys.argv:
        return int(any(path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text)
    return 0


def _replaced(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name} table: make readme-tables -->\n", f"<!-- end of {name} table -->\n"
    head, rest = text.split(begin)
    return head + begin + table + end + rest.split(end)[1]


def _of_devices(table: Callable[[Sequence[Row]], str], rows: Sequence[Row]) -> str:
    """With a line that names the device, where there are several."""
    devices = list(dict.fromkeys(str(row["device"]) for row in rows))
    made = {device: table([row for row in rows if str(row["device"]) == device]) for device in devices}
    tables = {device: text for device, text in made.items() if text}
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "\n".join(f"{device}:\n\n{text}" for device, text in tables.items())


def _cases(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of the same case together, in the order of the file."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["op"], row["case"], row.get("shape"), row.get("batch")), []).append(row)
    return list(cases.values())


def _range(rows: Sequence[Row], name: str, digits: int) -> str:
    """Mean, least and greatest."""
    values = [row[name] for row in rows]
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) if rows else ""


if __name__ == "__main__":
    sys.exit(main())
