"""The tables of docs/scale.md, from what `fleet` computes."""

import math
from collections.abc import Iterator

from pgraft_fast.report import Table
from pgraft_fast_benchmarks.fleet import (
    CANDIDATES,
    EPOCHS,
    FAILURES_A_GPU_HOUR,
    FIXED_BATCH,
    FIXED_PROMPTS,
    FLEETS,
    PROMPTS,
    RESTART,
    ROWS,
    SPREAD,
    WORKS,
    Round,
    computing,
)
from pgraft_fast_benchmarks.fleet_faults import goodput, simulated_round_seconds, slowest


def tables() -> dict[str, Table]:
    """By name, as docs/scale.md has them."""
    return {
        "network": network_table(), "remedies": remedies_table(), "fixed": fixed_table(), "failures": failures_table(),
    }  # fmt: skip


def network_table() -> Table:
    """Bytes and seconds of a round of each kind of work."""
    rows = [
        [
            each.work.name, f"{each.gpus:,}", _bytes(each.rewards), _bytes(each.rows), _bytes(each.weights),
            _bytes(each.gradients), _seconds(each.computing), _seconds(each.sampling), _seconds(each.training),
            _seconds(each.saving), _percent(each.efficiency),
        ]
        for each in (Round(work, gpus) for work in WORKS for gpus in FLEETS)
    ]  # fmt: skip
    header = [
        "work", "GPUs", "rewards a round", "kept rows a round", "weights a call", "gradients a step", "work alone",
        "sampling", "training", "saving", "efficiency",
    ]  # fmt: skip
    note = (
        f"A GPU's round: {PROMPTS} prompts of {CANDIDATES} candidates, one of each kept, {EPOCHS} epochs in batches of "
        f"{ROWS} rows a GPU. Bytes are those that each GPU sends. Work alone: of one GPU that has room for everything. "
        "Efficiency: that over the round's time, stragglers and failures included."
    )
    return Table(header, rows, note)


def remedies_table() -> Table:
    """Where the plain scheme stops at the largest fleet, and what the other one takes."""
    return Table(
        ["work", "GPUs", "scheme", "weights a call", "gradients a step", "sampling", "training", "efficiency"],
        [
            [name, f"{each.gpus:,}", scheme, _bytes(each.weights), _bytes(each.gradients), _seconds(each.sampling),
             _seconds(each.training), _percent(each.efficiency)]
            for name, scheme, each in _remedies()
        ],
        "Hybrid: sharded among the eight GPUs of a node, whole on each node.",
    )  # fmt: skip


def _remedies() -> Iterator[tuple[str, str, Round]]:
    for work in WORKS:
        if work.sharded:
            for gpus in FLEETS[1:]:
                yield work.name, "sharded among all", Round(work, gpus)
                yield work.name, "hybrid", Round(work, gpus, hybrid=True)
        else:
            for gpus in FLEETS:
                yield work.name, "gradients summed", Round(work, gpus)
                yield work.name, "deterministic: gradients gathered", Round(work, gpus, deterministic=True)


def fixed_table() -> Table:
    """Rounds of one size on ever more GPUs: a GPU has whole prompts and whole rows, or nothing."""
    rows = []
    for work in WORKS:
        of_prompt, of_row = work.sampling_flops / PROMPTS, work.training_flops / (EPOCHS * PROMPTS)
        steps = EPOCHS * FIXED_PROMPTS // FIXED_BATCH
        alone = computing(FIXED_PROMPTS * of_prompt + steps * FIXED_BATCH * of_row)
        for gpus in FLEETS:
            sampling = computing(math.ceil(FIXED_PROMPTS / gpus) * of_prompt)
            training = computing(steps * math.ceil(FIXED_BATCH / gpus) * of_row)
            at_work = min(gpus, FIXED_BATCH)
            rows.append([
                work.name, f"{gpus:,}", _seconds(sampling), _seconds(training), f"{at_work:,}",
                _percent(alone / gpus / (sampling + training)),
            ])  # fmt: skip
    header = ["work", "GPUs", "sampling", "training", "GPUs that train", "efficiency"]
    note = (
        f"{FIXED_PROMPTS:,} prompts of {CANDIDATES} candidates, batches of {FIXED_BATCH} rows, {EPOCHS} epochs. The "
        "network, stragglers and failures, which the other tables tell of, are left out here."
    )
    return Table(header, rows, note)


def failures_table() -> Table:
    """Goodput by the closed form and by simulation, and the slowest of the fleet."""
    rows = []
    for gpus in FLEETS:
        for minutes in (1, 10, 60):
            for times in (1, 10):
                rate, length = times * gpus * FAILURES_A_GPU_HOUR / 3600.0, 60.0 * minutes
                mean, _ = simulated_round_seconds(length, RESTART, rate, 20_000)
                rows.append([
                    f"{gpus:,}", f"{times * FAILURES_A_GPU_HOUR:.1e}", f"{1.0 / rate / 3600.0:,.1f} h",
                    f"{minutes} min", _percent(goodput(length, RESTART, rate)), _percent(length / mean),
                    f"{100.0 * (slowest(gpus, SPREAD) - 1.0):.1f} %",
                ])  # fmt: skip
    header = [
        "GPUs", "failures a GPU-hour", "between two", "round", "goodput", "simulated", "waiting for the slowest",
    ]  # fmt: skip
    note = f"A restart takes {RESTART / 60.0:.0f} min; times of a GPU spread by {100.0 * SPREAD:.0f} %."
    return Table(header, rows, note)


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return "-" if count == 0.0 else f"{count:.0f} B"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 1000.0 else f"{seconds:,.0f} s"


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %"
