"""The plan of a cut: its table, its figures, and its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgraft_fast.report.page import Picture, Section, Table, interval, number_text, write_page
from pgraft_fast.report.plots import Curve, curves_png

_NOTE = (
    "Share kept: of the accepted gain, when accepted states get fresh continuations below the cut, with its standard "
    "error. Ceiling: the reward of a perfect P-GRAFT at that cut and strength 1. Predicted: what the run will reach, "
    "from a short pilot at cut 0 and the share kept; 95 % interval. log-SNR: the noise at which the reference takes "
    "over; a cut at the same share of the steps is another noise on another schedule, and the same noise shows another "
    "amount of detail at another resolution."
)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """plan: `CutPlan.to_dict`."""
    header = ["cut", "log-SNR", "share kept", "ceiling", "predicted", "95 % interval"]
    cells = []
    for row in plan["outlooks"]:
        kept = row["kept"]
        share = "1" if row["cut"] == 0.0 else "-" if kept is None else f"{kept['share']:.2f} +- {kept['error']:.2f}"
        cells.append(
            [f"{row['cut']:g}", number_text(row["logsnr"], 2), share, number_text(row["ceiling"]),
             number_text(row["predicted"]), interval([row["low"], row["high"]])]
        )  # fmt: skip
    return Table(header, cells, _NOTE)


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The sentence, and what was spent and seen."""
    within = "" if plan["within"] is None else f"; {plan['within']:.0%} of the reward's variance lies within prompts"
    pilot = f", a pilot of {plan['pilot_steps']} steps" if plan["pilot_steps"] else ""
    return [
        # "told" in plans of earlier versions.
        plan["reason" if "reason" in plan else "told"],
        f"From {plan['accepted']} accepted candidates of mean reward {plan['base']:.4f}{within}{pilot}: "
        f"{plan['model_calls']:,} model calls, {plan['share']:.1%} of a run's.",
    ]


def plan_section(plan: Mapping[str, Any]) -> Section:
    """For a run's report."""
    pictures = []
    known = [row for row in plan["outlooks"] if row["cut"] == 0.0 or row["kept"] is not None]
    if len(known) > 1:
        shares = [1.0 if row["kept"] is None else row["kept"]["share"] for row in known]
        halves = [0.0 if row["kept"] is None else row["kept"]["share"] - row["kept"]["low"] for row in known]
        pictures.append(
            Picture(
                "plan-kept", curves_png([Curve("share kept", [row["cut"] for row in known], shares, halves)],
                                        "cut, share of the steps", "share of the accepted gain"),
                "Share of the accepted gain that is kept at each cut",
                "What fresh continuations below the cut keep of the accepted gain, with 95 % intervals.",
            )
        )  # fmt: skip
    levels = plan["levels"]
    if levels is not None:
        middles = [0.5 * (low + high) for low, high in zip(levels["edges"][:-1], levels["edges"][1:], strict=True)]
        pictures.append(
            Picture(
                "plan-levels", curves_png([Curve("pilot less base", middles, levels["change"],
                                                 [1.96 * error for error in levels["errors"]])],
                                          "noise level t", "loss on held-out rows"),
                "Loss of the pilot less that of the base on held-out rows",
                "Below 0 training helps at that noise level; 95 % intervals.",
            )
        )  # fmt: skip
    return Section("The cut", plan_lines(plan), plan_table(plan), pictures)


def write_plan_report(out: Path, name: str, plan: Mapping[str, Any]) -> Path:
    """Write out/index.html."""
    lead = "What a run would keep and reach at each cut, measured before it."
    return write_page(out, f"Where to cut: {name}", lead, [plan_section(plan)])
