"""The law that a run's rule asks for, as numbers and a figure."""

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import SelectSettings
from pgraft_fast.report.page import Picture, Section
from pgraft_fast.report.plots import Curve, curves_png
from pgraft_fast.selection import AcceptanceLaw, acceptance_law


def asked_law(select: SelectSettings, candidates: int, rewards: Tensor) -> AcceptanceLaw | None:
    """The law of the settings' rule; rules that look at the reward's size take its law from `rewards` (n,).

    None where these rewards leave nothing to accept.
    """
    values = rewards[torch.isfinite(rewards)].double().cpu().numpy()
    try:
        match select.rule:
            case "threshold" | "binary":
                return acceptance_law(select.rule, quantile=float((values < select.limit).mean()))
            case "classical":
                return acceptance_law(
                    "classical",
                    temperature=select.temperature,
                    reward_of_quantile=lambda f: np.quantile(values, f),
                )
            case _:
                return acceptance_law(select.rule, n=candidates, k=select.k)
    except InputError:
        return None


def law_section(select: SelectSettings, candidates: int, rewards: Tensor) -> Section:
    """KL, mean quantile and density ratio."""
    parameters = [f"{candidates} candidates a prompt"]
    for name in ("k", "temperature", "r_max", "threshold"):
        value = getattr(select, name)
        if value is not None:
            parameters.append(f"{name} = {value}")
    rule = f"Rule {select.rule} with {', '.join(parameters)}."
    law = asked_law(select, candidates, rewards)
    if law is None:
        return Section("The law that the rule asks for", [rule, "These rewards leave nothing to accept."])
    text = [
        rule,
        f"Exact KL(accepted, reference) = {law.kl:.4f} nats; an accepted sample stands at quantile "
        f"{law.mean_quantile:.3f} of its prompt's rewards on average.",
    ]
    if select.rule == "classical" and select.r_max is None:
        text.append(
            "The numbers hold for a bound on all rewards; here each group's own largest reward stood in for it."
        )
    quantile = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    figure = curves_png(
        [Curve("", quantile[::8].tolist(), law.density_ratio(quantile)[::8].tolist())],
        "quantile of the reward under the reference",
        "accepted / reference",
    )
    picture = Picture(
        "law", figure, "Density ratio of the accepted law against the reward's quantile",
        "How much more often a sample of this quantile is accepted than drawn.",
    )  # fmt: skip
    return Section("The law that the rule asks for", text, pictures=[picture])
