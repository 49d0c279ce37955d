"""`pgraft-fast bench`: this package against diffusers, torch.compile and plain torch, on this machine."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.console import Terminal
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.files import write_file
from pgraft_fast.ops import use_backend
from pgraft_fast.report import Table

KNOWN = ("ops", "sampling", "round")
_TIMES = (
    "Medians; the other columns say how many times as long a provider takes. skipped: it could not run here; fail: its "
    "result was wrong, so it has no time."
)
_NO_GOALS = "The goals are for full sizes: no verdict."


def bench(
    what: str, *, csv: Path | None, quick: bool, backend: str | None, threads: int, only: str = ""
) -> dict[str, Any]:
    """Measure and show; "failed" in the result counts red gates. Raises InputError, BackendError."""
    if what not in KNOWN:
        raise InputError(f"bench {what!r} is unknown; known: {', '.join(KNOWN)}")
    if threads < 1:
        raise InputError(f"--threads {threads}: at least 1")
    if importlib.util.find_spec("diffusers") is None:
        raise InputError("bench compares with diffusers, which is missing: pip install 'pgraft-fast[bench]'")
    with use_backend(backend):
        pass
    from pgraft_fast_benchmarks import show
    from pgraft_fast_benchmarks.harness import Settings

    module = importlib.import_module(f"pgraft_fast_benchmarks.bench_{what}")
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    terminal = Terminal()

    def each(label: str, rows: list[dict[str, Any]]) -> None:
        terminal.line(f"{label}: {', '.join(_one(row) for row in rows)}")
        for row in rows:
            if row["gate"] != "ok":
                terminal.line(f"  {row['provider']} {row['gate']}: {row.get('note', '')}")

    result: dict[str, Any] = {"bench": what, **module.run(Settings(device, backend, quick, only), each)}
    result["failed"] = sum(row["gate"] == "fail" for row in result["rows"])
    if csv is not None:
        write_file(csv, show.to_csv(result, module.COLUMNS))
    header, rows = show.times(result, module.SHOWN)
    terminal.table(str(result["device"]), Table(header, rows, _TIMES))
    if module.DETAILS:
        header, rows = show.details(result, module.DETAILS)
        terminal.table("In each call", Table(header, rows, module.DETAILS_NOTE))
    header, rows = show.goals(result, module.GOALS)
    terminal.table("Goals", Table(header, rows)) if rows else terminal.line(_NO_GOALS)
    return result


def _one(row: dict[str, Any]) -> str:
    mode = f" ({row['mode']})" if row.get("mode") else ""
    return f"{row['provider']} {row['gate'] if row['p50_ms'] is None else format(row['p50_ms'], '.4g')}{mode}"
