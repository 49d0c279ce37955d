"""`pgraft-fast finetune --dry-run`: what a run would do and take, from a short timed probe; nothing is written."""

from dataclasses import replace
from typing import Any

import torch

from pgraft_fast.amounts import duration
from pgraft_fast.commands.subjects import Config, subject_of
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.cost import Estimate, evaluations_of
from pgraft_fast.report import Table
from pgraft_fast.runs.batches import with_batches
from pgraft_fast.runs.mode import with_mode
from pgraft_fast.runs.sizing import SAFETY, evaluation_samples, probe_of, prompts_that_fit, with_prompts
from pgraft_fast.runs.subject import Subject
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.sizes import MB, megabytes, peak_resident


def dry_run(config: Config, terminal: Terminal, ranks: int = 1) -> dict[str, Any]:
    """The plan: prompts, rounds, rounds_asked, fits, why, round, evaluation_seconds, seconds, model_calls,
    device_hours, peak_memory_mb. ranks: that would share the work evenly; with several also "ranks" and, of a pipeline,
    "held_mb": by `shard`, what each would hold beside activations. Raises InputError where not one round fits.
    """
    subject = subject_of(config, terminal.line)
    try:
        subject = with_mode(with_batches(subject, None, terminal.line), terminal.line)
        if subject.config.sample.prompts is None:
            filled = with_prompts(subject.config, prompts_that_fit(subject, ranks))
            subject = replace(subject, config=filled)
        return _plan(subject, terminal, ranks)
    finally:
        subject.close()


def _plan(subject: Subject, terminal: Terminal, ranks: int) -> dict[str, Any]:
    config, task = subject.config, subject.task
    device = next(task.model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    cost = probe_of(subject, config)
    evaluations = evaluations_of(task.schedule, config, task.parameterization)
    round_cost = cost.round(config, evaluations)
    evaluation = cost.evaluation(config, evaluation_samples(config), evaluations)
    rounds, why = rounds_that_fit(config, round_cost, evaluation, ranks)
    evaluation, share = evaluation / ranks, 1.0 / ranks
    planned = config.train.rounds
    plan = {
        "prompts": config.sample.prompts,
        "rounds": rounds,
        "rounds_asked": planned,
        "fits": rounds == planned,
        "why": why,
        "round": {
            "sample_seconds": round(share * round_cost.sample, 6),
            "score_seconds": round(share * round_cost.score, 6),
            "train_seconds": round(share * round_cost.train, 6),
            "seconds": round(share * round_cost.seconds, 6),
            "model_calls": round_cost.model_calls,
        },
        "evaluation_seconds": round(2.0 * evaluation, 6),
        "seconds": round(rounds * share * round_cost.seconds + 2.0 * evaluation, 6),
        "device_hours": round((rounds * round_cost.seconds + 2.0 * ranks * evaluation) / 3600.0, 6),
        "model_calls": rounds * round_cost.model_calls,
        "peak_memory_mb": round(_peak_memory(device) / MB, 1),
    }
    if ranks > 1:
        plan["ranks"] = ranks
        if subject.held is not None:
            held = {"never": subject.held(ranks, False), "always": subject.held(ranks, True)}
            plan["held_mb"] = {shard: round(holding.total / MB, 1) for shard, holding in held.items()}
    _show(plan, terminal)
    if rounds == 0:
        raise InputError(f"{why}: not one round fits; raise [budget] or lower [sample] and [train]")
    return plan


def rounds_that_fit(config: Config, round_cost: Estimate, evaluation: float, ranks: int = 1) -> tuple[int, str | None]:
    """How many of the rounds asked for fit into the budget, and what ends them. Costs on one device."""
    limits: list[tuple[int, str]] = []
    seconds, calls = config.budget.seconds(ranks), config.budget.model_calls
    if seconds is not None:
        left = seconds - (1.0 + SAFETY) * evaluation
        reserve = duration((1.0 + SAFETY) * evaluation / ranks)
        reason = f"budget: {duration(seconds / ranks)}, of which {reserve} are for evaluation"
        limits.append((max(0, int(left / round_cost.seconds)), reason))
    if calls is not None:
        reason = f"budget: {calls:,} model calls, a round needs {round_cost.model_calls:,}"
        limits.append((calls // round_cost.model_calls, reason))
    rounds, why = min(limits, default=(config.train.rounds, ""))
    return (rounds, why) if rounds < config.train.rounds else (config.train.rounds, None)


def _peak_memory(device: torch.device) -> int:
    """In bytes: of a GPU what the probe took at most, else the process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def _show(plan: dict[str, Any], terminal: Terminal) -> None:
    costs = plan["round"]
    rows = [
        [
            f"one round of {plan['rounds_asked']}, {plan['prompts']} prompts",
            duration(costs["seconds"]),
            f"{costs['model_calls']:,}",
        ],
        [
            "  sample, score, train",
            " + ".join(duration(costs[f"{part}_seconds"]) for part in ("sample", "score", "train")),
            "",
        ],
        ["evaluation, before and after", duration(plan["evaluation_seconds"]), ""],
        [f"the run, {plan['rounds']} rounds", duration(plan["seconds"]), f"{plan['model_calls']:,}"],
    ]
    note = (
        f"Timed on a few steps; right to about 15 %. Peak memory of the probe {megabytes(MB * plan['peak_memory_mb'])}."
    )
    terminal.table("Plan", Table(["part", "time", "model calls"], rows, note))
    for shard, size in plan.get("held_mb", {}).items():
        terminal.line(
            f"shard = {shard!r}: each of {plan['ranks']} ranks holds {megabytes(MB * size)}, activations beside"
        )
    terminal.line("everything fits the budget" if plan["fits"] else f"{plan['why']}: {plan['rounds']} rounds fit")
