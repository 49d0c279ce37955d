"""`pgraft-fast demo shapes`: methods and their controls on a tiny Stable Diffusion at equal budgets, side by side."""

import time
from pathlib import Path
from typing import Any

from pgraft_fast.amounts import duration
from pgraft_fast.commands.comparison import EVALUATED_CANDIDATES, ComparisonSettings, compare
from pgraft_fast.errors import StoppedError
from pgraft_fast.files import to_json, write_file
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.report.comparison_report import PHASES, comparison_table, write_comparison_report
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation

RESULT = "demo.json"


def run_shapes_demo(settings: ComparisonSettings, out: Path, terminal: Terminal) -> dict[str, Any]:
    """Run, print the table; writes out/report, out/demo.json and the adapters. Returns the JSON's content."""
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    evaluations: dict[str, Evaluation] = {}
    qualities: dict[str, dict[str, Any]] = {}
    task: Task | None = None
    total = len(settings.seeds) * (1 + len(settings.budgets) * len(settings.methods))
    with stop_on_signals() as stop, terminal.progress(total):
        try:
            for of_run, compared in compare(settings, terminal.line, stop.check, keep=out):
                task = of_run
                rows.append(compared.row())
                terminal.line(line_of(rows[-1]))
                terminal.advance(len(rows), f"seed {compared.seed}")
                if compared.seed == settings.seeds[0] and compared.budget in (0, settings.budgets[-1]):
                    evaluations[compared.method], qualities[compared.method] = compared.evaluation, compared.quality
        except StoppedError as error:
            raise StoppedError(f"{error}; finished adapters are in {out}, run the demo again for the rest") from error
    assert task is not None
    terminal.table("Right answers to the questions of held-out prompts", comparison_table(rows))
    page = write_comparison_report(out, task, _lead(settings), rows, qualities, evaluations, EVALUATED_CANDIDATES)
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 2), "rows": rows}
    write_file(out / RESULT, to_json(result))
    terminal.line(f"{duration(result['seconds'])}, adapters: {out}, report: {page}")
    return result


def line_of(row: dict[str, Any]) -> str:
    """One line."""
    name = f"seed {row['seed']} {row['label']:22}"
    if row["gain"] is None:
        return f"{name} reward {row['reward']:.4f}"
    low, high = row["gain_ci"]
    split = " + ".join(f"{phase} {duration(row[f'{phase}_seconds'])}" for phase in PHASES)
    return (
        f"{name} reward {row['reward']:.4f}, {100 * row['gain']:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f}), "
        f"{row['model_calls']:,} model calls, {split}"
    )


def _lead(settings: ComparisonSettings) -> str:
    budgets = ", ".join(f"{budget:,}" for budget in settings.budgets)
    return (
        "A Stable Diffusion of a million weights, rewarded for right answers to the questions of its prompts. Budget "
        f"of each method: {budgets} model calls; seeds {', '.join(map(str, settings.seeds))}; {settings.samples} "
        "samples of prompts that nothing was trained on."
    )
