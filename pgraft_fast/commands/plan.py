"""`pgraft-fast plan`: where a run should cut and what it will reach, for at most 15 % of its model calls."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pgraft_fast.commands.subjects import Config, subject_of
from pgraft_fast.errors import InputError
from pgraft_fast.files import to_json, write_file
from pgraft_fast.finetune.cut_plan import plan_cut
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.report.plan_report import plan_lines, plan_table, write_plan_report
from pgraft_fast.runs.batches import with_batches
from pgraft_fast.runs.sizing import prompts_that_fit, with_prompts
from pgraft_fast.runs.terminal import Terminal

RESULT = "plan.json"


def plan_run(config: Config, out: Path | None, terminal: Terminal) -> dict[str, Any]:
    """Measure, print the table and the sentence; writes out/plan.json and out/index.html, default <run>/plan. Returns
    what the JSON holds. Raises InputError.
    """
    if config.method in ("ddpo", "nft"):
        raise InputError(f"method='{config.method}' has no cut to plan; set it to 'pgraft' or 'graft'")
    out = Path(config.run) / "plan" if out is None else out
    subject = subject_of(config, terminal.line)
    try:
        subject = with_batches(subject, None, terminal.line)
        if subject.config.sample.prompts is None:
            subject = replace(subject, config=with_prompts(subject.config, prompts_that_fit(subject)))
        task = subject.task
        with stop_on_signals() as stop:
            plan = plan_cut(
                task.model, task.schedule, subject.reward, subject.config, shape=task.shape,
                parameterization=task.parameterization, prompts=task.prompts, learner=subject.learner,
                check=stop.check, log=terminal.line,
            ).to_dict()  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / RESULT, to_json(plan))
        page = write_plan_report(out, task.name, plan)
    finally:
        subject.close()
    terminal.table("Where to cut", plan_table(plan))
    for line in plan_lines(plan):
        terminal.line(line)
    terminal.line(f'set train.cut = {plan["cut"]:g}, or "auto", in the config; report: {page}')
    return plan
