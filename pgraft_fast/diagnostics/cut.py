"""What an acceptance is worth at a noise level: what fresh continuations keep of its gain, and what can be learned.

P-GRAFT gives the decision on a final sample to the state at the cut. What is left of it there needs no training to be
measured: accepted states get fresh continuations, whose rewards know nothing of the decision but through the state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diagnostics.quality import Interval, student
from pgraft_fast.errors import InputError

# Acceptance of a candidate looks at the others of its group.
_RELATIVE_RULES = ("top_k", "best_of_n", "preference")
_DRAWS, _DRAWS_OF_A_GAIN = 200, 4000
_MOST_OF_LIMIT = 0.999


@dataclass(frozen=True)
class KeptGain:
    """share: s, with its standard error and 95 % interval. gain: mean of r - b over the accepted rows that were
    continued, what full selection is worth, with its standard error. rows: how many there were. groups: of how many.
    """

    share: float
    error: float
    low: float
    high: float
    gain: float
    gain_error: float
    rows: int
    groups: int


def kept_gain(reward: Tensor, fresh: Tensor, base: Tensor, group: Tensor) -> KeptGain:
    """s = sum (r' - b) / sum (r - b): the share of the accepted gain that fresh continuations keep.

    reward: (m,) r of accepted rows, as they were drawn. fresh: (m,) r' of continuations of their states with new noise.
    base: (m,) b, what their prompts give without acceptance, see `base_rewards`. group: (m,) int64; rows of a group
    share noise. As r' is independent of the decision given the state, numerator and denominator are unbiased. The
    standard error is that of a ratio over groups (linearised), the interval Student's. Raises InputError where there
    are fewer than two groups or the accepted rows gain nothing.
    """
    r, fresh, base = (value.to("cpu", torch.float64) for value in (reward, fresh, base))
    finite = r.isfinite() & fresh.isfinite() & base.isfinite()
    r, fresh, base, group = r[finite], fresh[finite], base[finite], group.cpu()[finite]
    _, number = group.unique(return_inverse=True)
    groups = int(number.max()) + 1 if number.numel() else 0
    if groups < 2:
        raise InputError(f"kept_gain: {groups} group(s) with accepted rows; at least 2 are needed")
    whole = float((r - base).sum())
    if not whole > 0.0:
        raise InputError("kept_gain: the accepted rows are no better than what their prompts give anyway")
    share = float((fresh - base).sum()) / whole
    gain = whole / r.numel()

    def error(rest: Tensor) -> float:
        """Of a sum over rows."""
        of_group = torch.zeros(groups, dtype=torch.float64).index_add_(0, number, rest)
        return math.sqrt(groups / (groups - 1) * float(of_group.square().sum()))

    of_share, of_gain = error(fresh - base - share * (r - base)) / whole, error(r - base - gain) / r.numel()
    half = student(groups - 1) * of_share
    return KeptGain(share, of_share, share - half, share + half, gain, of_gain, r.numel(), groups)


def base_rewards(rewards: Tensor, rule: str) -> Tensor:
    """b of every candidate: what its prompt gives without acceptance, (P, N) float64, so that the sum of r - b over the
    accepted ones is unbiased.

    Rules that compare candidates (top_k, best_of_n, preference): the mean of the group. Rules that look at each alone:
    the mean of the others of the group, as a lucky group has more accepted ones. rewards: (P, N); those that are not
    finite are left out. nan where there is nothing to average.
    """
    values = rewards.to("cpu", torch.float64)
    valid = values.isfinite()
    total, count = values.where(valid, 0.0).sum(dim=1, keepdim=True), valid.sum(dim=1, keepdim=True)
    if rule in _RELATIVE_RULES:
        return (total / count).expand_as(values)
    return (total - values.where(valid, 0.0)) / (count - valid.to(torch.int64))


def within_share(rewards: Tensor) -> float:
    """Share of the variance of rewards (P, N) that lies within groups, by analysis of variance; nan without variance.

    1 where the prompt says nothing about the reward, 0 where candidates of a prompt are all alike.
    """
    values = rewards.to("cpu", torch.float64)
    kept = values[values.isfinite().all(dim=1)]
    groups, n = kept.shape
    if groups < 2 or n < 2:
        return math.nan
    within = float(kept.var(dim=1).mean())
    between = max(0.0, float(kept.mean(dim=1).var()) - within / n)
    return within / (within + between) if within + between > 0.0 else math.nan


@dataclass(frozen=True)
class LearnedLevels:
    """edges: (L + 1,) rising noise levels t. change: (L,) mean loss of the trained model less that of the base on
    held-out rows, per level, with standard errors: below 0 the trained one is better. lowest: the level above which it
    is to be used, error: of that.
    """

    edges: tuple[float, ...]
    change: tuple[float, ...]
    errors: tuple[float, ...]
    lowest: float
    error: float


def learned_levels(change: Tensor, edges: Sequence[float], seed: int = 0) -> LearnedLevels:
    """Above which level training helps: t* = argmin over edges of the sum of mean changes of the levels above it.

    change: (m, L) loss of the trained model less that of the base, of m held-out rows at L levels between `edges`
    (L + 1,), at the same noise. The error is the standard deviation over 200 redraws of the rows. Raises InputError.
    """
    values = change.to("cpu", torch.float64)
    m, levels = values.shape
    if m < 2 or len(edges) != levels + 1:
        raise InputError(f"learned_levels: change {tuple(values.shape)} and {len(edges)} edges: at least 2 rows, L + 1")
    redraws = torch.randint(m, (_DRAWS, m), generator=torch.Generator().manual_seed(seed))
    lowest = torch.tensor([edges[_lowest(values[rows].mean(dim=0))] for rows in redraws], dtype=torch.float64)
    return LearnedLevels(
        tuple(edges), tuple(values.mean(dim=0).tolist()), tuple((values.std(dim=0) / m**0.5).tolist()),
        edges[_lowest(values.mean(dim=0))], float(lowest.std()),
    )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, normal."""

    value: float
    error: float = 0.0


# Of trainings on digits and shapes, see grown_gain.
GROWTH, BEYOND = Estimate(0.75, 0.2), Estimate(1.15, 0.15)


def grown_gain(gain: Estimate, limit: Estimate, share: Estimate, longer: float) -> Interval:
    """What a training `longer` times as long as a pilot gains at a cut, from what the pilot gained at cut 0:

        end (1 - (1 - early gain / end)^(longer^g)), end = share f limit, early = share + u (1 - share),

    which grows as a power of the steps and ends a factor f beyond `limit`, the gain that training goes towards. Of that
    a state tells its share, taken within 0 and 1. What is learned first lies at high noise rather than at low: between
    the share and all of the pilot's gain comes from above the cut, u from 0 to 1. g and f were fitted to trainings on
    digits and shapes, see GROWTH and BEYOND. The interval holds 95 % of draws of gain, limit, share, g, f and u; the
    mean is that at their means.
    """

    def grown(u: Tensor, of_gain: Tensor, of_limit: Tensor, of_share: Tensor, power: Tensor, beyond: Tensor) -> Tensor:
        part = of_share.clamp(0.0, 1.0)
        end = of_limit * beyond.clamp(min=0.5) * part
        # 0 / 0 where a state tells nothing.
        begun = ((part + u * (1.0 - part)) * of_gain / end).nan_to_num(0.0).clamp(-_MOST_OF_LIMIT, _MOST_OF_LIMIT)
        return end * (1.0 - (1.0 - begun.abs()) ** longer ** power.clamp(0.0, 1.0)).copysign(begun)

    estimates, random = (gain, limit, share, GROWTH, BEYOND), torch.Generator().manual_seed(0)
    means = [torch.tensor(estimate.value, dtype=torch.float64) for estimate in estimates]
    draws = torch.randn(5, _DRAWS_OF_A_GAIN, generator=random, dtype=torch.float64)
    varied = [mean + estimate.error * draw for mean, estimate, draw in zip(means, estimates, draws, strict=True)]
    middle = grown(torch.tensor(0.5), *means)
    gains = grown(torch.rand(_DRAWS_OF_A_GAIN, generator=random), *varied)
    low, high = gains.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(middle), low, high)


def _lowest(change: Tensor) -> int:
    """The edge above which the changes sum to least; the last one where nothing helps."""
    above = torch.cat((change.flip(0).cumsum(0).flip(0), change.new_zeros(1)))
    return int(above.argmin())
