"""A benchmark without the command line's packages: python -m pgraft_fast_benchmarks.run ops --size quick --csv FILE.

For machines where only some packages are installed, and for other commits than the installed one. Prints plain lines;
the exit status is 1 where a gate of ours is red, 3 where a package is missing.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from pgraft_fast.waiting import wait_passively


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="pgraft_fast_benchmarks.run", description=__doc__)
    parser.add_argument(
        "what", choices=("ops", "sampling", "round", "ranks", "invert", "quality", "methods", "cut", "scaling")
    )
    parser.add_argument("--size", choices=("full", "quick", "smoke"), default="full")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--run", help="time stamp of the run, where several processes make its parts")
    parser.add_argument("--only", default="", help="the cases or parts with this in their name")
    parser.add_argument("--threads", type=int, default=2, help="of torch on a CPU")
    parser.add_argument("--backend", help="of our operations, in place of the choice by device")
    args = parser.parse_args(arguments)
    wait_passively()
    try:
        import torch

        from pgraft_fast_benchmarks import records
        from pgraft_fast_benchmarks.harness import Settings

        module = importlib.import_module(module_of(args.what))
    except ModuleNotFoundError as error:
        print(f"{args.what}: skipped, {error}")
        return 3
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []

    def each(label: str, case_rows: list[dict[str, Any]]) -> None:
        """Print a case, and keep its rows at once: a run that is cut off leaves what it measured."""
        rows.extend(case_rows)
        for row in case_rows:
            time = row.get("p50_ms")
            print(
                f"{label} {row['provider']}: {row['gate'] if time is None else f'{time:.4g} ms'} {row.get('note', '')}"
            )
        sys.stdout.flush()
        if args.csv is not None:
            from pgraft_fast_benchmarks.environment import environment

            of_run = {**environment(device), "run": began, "size": args.size, "backend": args.backend or "by device"}
            records.append(args.csv, records.rows_of({**of_run, "bench": args.what, "rows": case_rows}))

    began = args.run or records.now()
    module.run(Settings(device, args.backend, args.size, args.only), each)
    return int(any(row["gate"] == "fail" and str(row["provider"]).startswith("ours") for row in rows))


def module_of(what: str) -> str:
    """The module of a benchmark."""
    return f"pgraft_fast_benchmarks.{'' if what == 'scaling' else 'bench_'}{what}"


if __name__ == "__main__":
    sys.exit(main())
