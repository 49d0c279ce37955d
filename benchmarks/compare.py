"""Another commit against this tree, in turns on the same machine: make bench-compare BASE=<commit>.

Each commit's benchmark runs from its own checkout in a process of its own; base and head take turns, so that what the
machine does meanwhile meets both. For each of our rows: base's time over head's, above 1 head is faster; and the same
with the time counted in those of the peers beside it, which does not depend on how fast the machine was.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pgraft_fast.waiting import passive_environment
from pgraft_fast_benchmarks.code_path import make
from pgraft_fast_benchmarks.records import Row, key, read

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a row of head is red or slower than `--limit` times base's."""
    parser = argparse.ArgumentParser(prog="benchmarks/compare.py", description=__doc__)
    parser.add_argument("base", help="a commit")
    parser.add_argument("--what", default="ops", help="ops, sampling, round, invert")
    parser.add_argument("--size", choices=("full", "quick", "smoke"), default="quick")
    parser.add_argument("--only", default="", help="the cases with this in their label")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.25, help="of head's time over base's")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        base = _checkout(args.base, Path(folder) / "base")
        try:
            rows = _measure({"base": base, "head": ROOT}, Path(folder), args)
        finally:
            _git("worktree", "remove", "--force", str(base))
    return report(rows["base"], rows["head"], args.limit)


def report(base: Sequence[Row], head: Sequence[Row], limit: float) -> int:
    """Print a line a case; the exit status."""
    bad = 0
    cases = {key(row): row for row in head if row["provider"] == "ours"}
    print(f"{'case':46} {'base ms':>9} {'head ms':>9} {'base/head':>9} {'by peers':>9}")
    for case, row in cases.items():
        times = [_times(rows, case) for rows in (base, head)]
        name = f"{row['op']} {row['case']} {row['shape']}"
        if any(mine["ours"] is None for mine in times):
            print(f"{name:46} {'red or missing in ' + ('base' if times[0]['ours'] is None else 'head')}")
            bad += times[1]["ours"] is None
            continue
        ratio = times[0]["ours"] / times[1]["ours"]
        peers = [times[1][peer] / times[1]["ours"] / (times[0][peer] / times[0]["ours"]) for peer in times[0]
                 if peer != "ours" and times[0][peer] and times[1].get(peer)]  # fmt: skip
        by_peers = f"{statistics.median(peers):9.3f}" if peers else " " * 9
        print(f"{name:46} {times[0]['ours']:9.4g} {times[1]['ours']:9.4g} {ratio:9.3f} {by_peers}")
        bad += ratio < 1.0 / limit
    return int(bad > 0)


def _times(rows: Sequence[Row], case: tuple[object, ...]) -> dict[str, float]:
    """Median milliseconds of each provider over the turns; None where one of them was red."""
    readings: dict[str, list[float | None]] = {}
    for row in rows:
        if key(row) == case:
            readings.setdefault(row["provider"], []).append(row.get("p50_ms") if row["gate"] == "ok" else None)
    times = {name: None if None in mine else statistics.median(filter(None, mine)) for name, mine in readings.items()}
    return {"ours": None, **times}  # type: ignore[dict-item]


def _measure(trees: dict[str, Path], folder: Path, args: argparse.Namespace) -> dict[str, list[Row]]:
    code = {name: make(folder / "code" / name, tree) for name, tree in trees.items()}
    for turn in range(args.turns):
        for name in list(trees)[:: 1 if turn % 2 == 0 else -1]:
            print(f"turn {turn + 1} of {args.turns}: {name}", file=sys.stderr, flush=True)
            command = [
                sys.executable, "-m", "pgraft_fast_benchmarks.run", args.what, "--size", args.size,
                "--only", args.only, "--csv", str(folder / f"{name}.csv"),
            ]  # fmt: skip
            process = subprocess.run(
                command, env={**passive_environment(), "PYTHONPATH": str(code[name])}, cwd=folder, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            if process.returncode not in (0, 1):
                status, end = process.returncode, process.stderr[-500:]
                raise SystemExit(f"{name}: the benchmark ended with status {status}: {end}")
    return {name: read(folder / f"{name}.csv") for name in trees}


def _checkout(commit: str, folder: Path) -> Path:
    process = _git("worktree", "add", "--detach", str(folder), commit)
    if process.returncode:
        raise SystemExit(f"BASE={commit}: {process.stderr.strip().splitlines()[-1]}")
    if not (folder / "benchmarks" / "run.py").exists():
        _git("worktree", "remove", "--force", str(folder))
        raise SystemExit(f"BASE={commit}: this commit is older than benchmarks/run.py, which it would be measured with")
    return folder


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
