"""Which of the cuts that were measured to take, and the sentence that says why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pgraft_fast.diagnostics.cut import KeptGain

# The paper's, where a plan cannot tell.
FALLBACK = 0.25
LEAST_ACCEPTED = 20
_ENOUGH = 0.95
# Of fewer a model gives again what it read, at the noise levels that it is tuned on.
_FEW_ACCEPTED = 64
# What coverage may cost: this part of the reward, and never more than a quarter of the gain.
_REWARD_GIVEN_UP, _LEAST_KEPT = 0.02, 0.75


@dataclass(frozen=True)
class CutOutlook:
    """One cut. logsnr, t: of the handover. kept: s(t), or None. predicted: reward after the run, low, high: its 95 %
    interval, or None without a pilot. ceiling: the reward of a perfect P-GRAFT of strength 1.
    """

    cut: float
    t: float
    logsnr: float
    kept: KeptGain | None
    ceiling: float | None = None
    predicted: float | None = None
    low: float | None = None
    high: float | None = None


def choose(outlooks: Sequence[CutOutlook], lowest: float | None, accepted: int) -> tuple[float, str]:
    """The cut, and the sentence. outlooks: of cut 0 and of rising cuts. lowest: t* as a share of the steps, or None
    without a pilot. accepted: how many candidates of a round are.

    The largest cut with s - 2 errors >= 0.95 costs no reward. It is taken where it does not lie below t* and enough was
    accepted. Else training does harm at the levels above it: taken is the largest cut that gives up at most 2 % of
    cut 0's ceiling and a quarter of the gain.
    """
    known = [outlook for outlook in outlooks if outlook.cut == 0.0 or outlook.kept is not None]
    lossless = [
        outlook for outlook in known if outlook.kept is None or outlook.kept.share - 2.0 * outlook.kept.error >= _ENOUGH
    ][-1]
    whole = f"the decision keeps at least {_ENOUGH:.0%} of its gain down to a cut of {lossless.cut:g}"
    if lowest is None:
        return lossless.cut, f"The cut is {lossless.cut:g}: {whole}; there was no room for a pilot."
    if accepted >= _FEW_ACCEPTED and lowest <= lossless.cut:
        above = "at every noise level" if lowest == 0.0 else f"above {lowest:.2f} of the steps"
        return lossless.cut, f"The cut is {lossless.cut:g}: {whole}, and training helps {above}."
    affordable = [outlook for outlook in known if outlook.cut > lossless.cut and _costs_little(outlook, known[0])]
    best = affordable[-1] if affordable else lossless
    why = (
        f"training helps only above {lowest:.2f} of the steps" if accepted >= _FEW_ACCEPTED
        else f"only {accepted} candidates of a round are accepted, which a model gives again where it is tuned on them"
    )  # fmt: skip
    shares = ", ".join(f"{outlook.cut:g} keeps {_share(outlook):.0%}" for outlook in known)
    if affordable:
        rest = f"and this cut gives up {_share_lost(best, known[0]):.1%} of the reward at most ({shares})"
    elif best is known[-1]:
        rest = f"and {whole}, the largest one that was measured"
    else:
        rest = f"but every larger cut costs too much of the gain ({shares})"
    return best.cut, f"The cut is {best.cut:g}: {why}, {rest}."


def _costs_little(outlook: CutOutlook, whole: CutOutlook) -> bool:
    return _share(outlook) >= _LEAST_KEPT and _share_lost(outlook, whole) <= _REWARD_GIVEN_UP


def _share_lost(outlook: CutOutlook, whole: CutOutlook) -> float:
    """Of the ceiling of cut 0."""
    if outlook.ceiling is None or whole.ceiling is None or whole.ceiling == 0.0:
        return math.inf
    return max(0.0, whole.ceiling - outlook.ceiling) / abs(whole.ceiling)


def _share(outlook: CutOutlook) -> float:
    return 1.0 if outlook.kept is None else outlook.kept.share
