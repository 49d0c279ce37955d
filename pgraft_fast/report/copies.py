"""What dropping copies does to the law of what is accepted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgraft_fast.finetune import SelectSettings
from pgraft_fast.report.page import Section, Table
from pgraft_fast.selection import acceptance_law

_NOTE = (
    "Of the last round's candidates. KL: of the accepted law to the law of the samples, where the distinct ones that "
    "were accepted stand for all; effective number: exp of the entropy of the accepted, distinct ones counted."
)


def copies_sections(select: SelectSettings, candidates: Mapping[str, Tensor]) -> list[Section]:
    """A table: the law with and without de-duplication, for the rule that drops copies. candidates: (P, N) of the last
    round by name: reward, and copies, int64 that are equal for the same.
    """
    if "copies" not in candidates:
        return []
    reward, copies = candidates["reward"], candidates["copies"]
    counts = counts_of(select, reward, copies)
    if counts.numel() == 0:
        return []
    group = reward.shape[1] if select.copies == "group" else reward.numel()
    among = {"group": "of a group", "run": "of the run"}.get(select.copies or "round", "of a round")
    # What one group keeps, others may keep again.
    kept = counts_of(select, reward, copies, within_groups=True) if select.copies == "group" else counts.clamp(max=1.0)
    masses = counts / reward.numel()
    cells = [
        _row("every accepted sample", counts, -float(masses.sum().log())),
        _row(f"one of those {among} that are the same", kept, acceptance_law("binary", n=group, masses=masses).kl),
    ]
    header = ["kept", "samples", "distinct", "largest share", "effective number", "KL, nats"]
    return [Section("Copies", table=Table(header, cells, _NOTE))]


def counts_of(select: SelectSettings, reward: Tensor, copies: Tensor, within_groups: bool = False) -> Tensor:
    """(m,) float64: how often each distinct sample was accepted, or in how many groups. reward, copies: (P, N)."""
    good = reward >= select.limit
    if not within_groups:
        return copies[good].unique(return_counts=True)[1].to(torch.float64)
    rows = [copies[group][good[group]].unique() for group in range(reward.shape[0])]
    return torch.cat(rows).unique(return_counts=True)[1].to(torch.float64)


def _row(name: str, counts: Tensor, kl: float) -> list[str]:
    share = counts / counts.sum()
    entropy = -float((share * share.log()).sum())
    return [
        name, f"{int(counts.sum())}", f"{counts.numel()}", f"{100.0 * float(share.max()):.1f} %",
        f"{torch.tensor(entropy).exp():.1f}", f"{kl:.3f}",
    ]  # fmt: skip
