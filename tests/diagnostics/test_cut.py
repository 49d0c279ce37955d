"""What is left of an acceptance at a noise level: against closed forms, brute force, and drawn cases."""

import math

import pytest
import torch
from exact import Mixture

from pgraft_fast.diagnostics import cut
from pgraft_fast.diagnostics.cut import Estimate, base_rewards, grown_gain, kept_gain, learned_levels, within_share
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import rollout
from pgraft_fast.selection import accept

FLOW = Schedule.linear_flow()
RULES = {"top_k": {"k": 2}, "best_of_n": {}, "threshold": {"threshold": 0.8}, "preference": {}}


def drawn(seed, groups, n, keep, spread=0.0, fresh=1):
    """Rewards and `fresh` redraws, normal with correlation keep (what the state knows), prompts of their own means."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    prompt, state = spread * normal(groups, 1), normal(groups, n)
    r = prompt + keep**0.5 * state + (1 - keep) ** 0.5 * normal(groups, n)
    again = prompt[..., None] + keep**0.5 * state[..., None] + (1 - keep) ** 0.5 * normal(groups, n, fresh)
    return r, again


def measured(rewards, again, rule, **options):
    mask = accept(rewards, rule, **options).mask
    group = torch.arange(rewards.shape[0])[:, None].expand_as(rewards)
    return kept_gain(rewards[mask], again[mask], base_rewards(rewards, rule)[mask], group[mask])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_the_share_is_that_of_the_state(rule, spread):
    """Of normal rewards a state that knows the share `keep` of the variance keeps just that share of the gain."""
    rewards, again = drawn(1, 40_000, 4, 0.6, spread)
    estimate = measured(rewards, again[..., 0], rule, **RULES[rule])
    assert estimate.share == pytest.approx(0.6, abs=4 * estimate.error) and estimate.error < 0.02
    # The gain itself: acceptance over what the prompt gives.
    mask = accept(rewards, rule, **RULES[rule]).mask
    chance = torch.distributions.Normal(0.0, 1.0)
    if rule == "preference":
        assert estimate.gain == pytest.approx(1 / math.pi**0.5, abs=0.02)
    if rule == "threshold" and spread == 0.0:
        aim = float(chance.log_prob(torch.tensor(0.8)).exp() / (1 - chance.cdf(torch.tensor(0.8))))
        assert estimate.gain == pytest.approx(aim, abs=0.02)
    assert estimate.rows == int(mask.sum()) and estimate.groups == int(mask.any(dim=1).sum())


def test_a_group_s_mean_would_be_wrong_for_a_threshold():
    """Lucky groups have more accepted rows: the mean of the group takes a part of the gain away."""
    rewards, _ = drawn(2, 40_000, 4, 0.6)
    mask = accept(rewards, "threshold", threshold=0.8).mask
    wrong = (rewards - base_rewards(rewards, "top_k"))[mask].mean()
    right = (rewards - base_rewards(rewards, "threshold"))[mask].mean()
    assert right - wrong > 0.2


def test_intervals_cover():
    """Of 1,000 drawn cases, each of some 200 accepted rows, 93 to 97 % hold the truth."""
    inside = 0
    for seed in range(1000):
        keep = 0.1 + 0.8 * (seed % 9) / 8
        rule = ("top_k", "threshold")[seed % 2]
        rewards, again = drawn(seed + 10, 120, 4, keep, spread=0.5)
        estimate = measured(rewards, again[..., 0], rule, **({"k": 2} if rule == "top_k" else {"threshold": 0.3}))
        inside += estimate.low <= keep <= estimate.high
    assert 930 <= inside <= 970


@pytest.mark.parametrize("cut", [0.25, 0.6])
def test_against_brute_force_on_an_exact_mixture(cut):
    """One continuation a state, unbiased: 64 a state give the same share. The reward is x_0 itself."""
    model = Mixture().model(FLOW, "velocity")
    common = {"shape": (1,), "steps": 40, "solver": "ddpm", "parameterization": "velocity", "batch_size": 100_000}
    rolled = rollout(model, FLOW, n=8_000, cuts=(cut,), seed=1, **common)
    rewards = rolled.x_0.view(-1, 4).double()
    mask = accept(rewards, "top_k", k=1).mask
    states = rolled.x_cut[cut][mask.flatten()]

    def continued(times):
        again = states.repeat_interleave(times, dim=0)
        ids = torch.arange(again.shape[0]) + (1 << 30) * times
        done = rollout(model, FLOW, sample_ids=ids, x_start=again, start=cut, seed=1, **common)
        return done.x_0.view(-1, times).double()

    base, group = base_rewards(rewards, "top_k")[mask], torch.arange(rewards.shape[0])
    single = kept_gain(rewards[mask], continued(1)[:, 0], base, group)
    many = kept_gain(rewards[mask], continued(64).mean(dim=1), base, group)
    assert abs(single.share - many.share) < 3 * math.hypot(single.error, many.error)
    # 1 - E Var(r | x_t) / Var(r), which predicts it.
    within = float(continued(64).var(dim=1).mean() / rewards.var())
    assert many.share == pytest.approx(1 - within, abs=0.12)
    assert many.error < single.error


def test_share_of_variance_within_prompts():
    rewards, _ = drawn(3, 4_000, 6, 0.5, spread=1.0)
    assert within_share(rewards) == pytest.approx(0.5, abs=0.02)
    assert within_share(rewards.mean(dim=1, keepdim=True).expand(-1, 6)) == pytest.approx(0.0, abs=1e-9)
    assert within_share(drawn(4, 4_000, 6, 0.5)[0]) == pytest.approx(1.0, abs=0.02)
    assert math.isnan(within_share(torch.ones(5, 3)))


def test_the_level_above_which_training_helps():
    edges = torch.linspace(0, 1, 11).tolist()
    curve = torch.tensor([0.5, 0.2, -0.1, 0.05, -0.2, -0.4, -0.5, -0.5, -0.4, -0.2])
    noise = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    levels = learned_levels(curve + 0.2 * noise, edges)
    # From 0.2 on: the small loss at 0.3 to 0.4 is less than what 0.2 to 0.3 brings.
    assert levels.lowest == pytest.approx(0.2) and levels.error < 0.1
    assert levels.change == pytest.approx(curve.tolist(), abs=0.04) and max(levels.errors) < 0.015
    assert learned_levels(-curve.abs() + 0.01 * noise, edges).lowest == 0.0
    assert learned_levels(curve.abs() + 0.01 * noise, edges).lowest == 1.0
    assert learned_levels(curve + 20 * noise[:20], edges).error > 0.1


def test_a_longer_training_gains_more_up_to_its_limit():
    # As it was seen, training goes a factor beyond its limit, and as a power of the steps.
    factor, power = cut.BEYOND.value, cut.GROWTH.value
    share, limit, end = Estimate(0.8), Estimate(0.1), 0.1 * factor

    def grown(gain, longer, error=0.0, share=share, limit=limit):
        return grown_gain(Estimate(gain, error), limit, share, longer)

    same = grown(0.02, 1.0, share=Estimate(1.0))
    assert [same.mean, same.low, same.high] == pytest.approx([0.02] * 3)
    more = grown(0.02, 10.0, share=Estimate(1.0))
    assert more.mean == pytest.approx(end * (1 - (1 - 0.02 / end) ** (10**power)))
    assert same.mean < more.low < more.mean < more.high
    far = grown(0.02, 1e9)
    assert far.mean == pytest.approx(0.8 * end, rel=1e-3)
    assert far.high == pytest.approx(0.08 * (factor + 1.96 * cut.BEYOND.error), rel=0.05)
    assert grown(-0.02, 10.0).mean == pytest.approx(-grown(0.02, 10.0).mean)
    wide = grown(0.02, 1.0, error=0.01, share=Estimate(1.0))
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.01, rel=0.1)
    # What the accepted gain is known to counts where training ends there.
    loose = grown(0.02, 1e9, limit=Estimate(0.1, 0.03))
    width = 0.8 * 2 * 1.96 * math.hypot(0.03 * factor, 0.1 * cut.BEYOND.error)
    assert loose.high - loose.low == pytest.approx(width, rel=0.2) and width > 1.4 * (far.high - far.low)


def test_what_is_learned_first_may_lie_above_the_cut():
    """Far from its limit a cut gains between its share and all of what cut 0 does; near it, its share."""
    few = grown_gain(Estimate(0.001), Estimate(10.0), Estimate(0.4), 1.0)
    assert few.mean == pytest.approx(0.7 * 0.001, rel=1e-3)
    assert 0.4 * 0.001 < few.low < 0.45 * 0.001 and 0.95 * 0.001 < few.high < 0.001
    all_of_it = grown_gain(Estimate(0.1), Estimate(0.1), Estimate(0.4), 1e9)
    assert all_of_it.mean == pytest.approx(0.4 * 0.1 * cut.BEYOND.value, rel=1e-3)


def test_a_state_tells_between_nothing_and_all():
    ends = {}
    for share in (-0.3, 0.0, 1.0, 1.2):
        gain = grown_gain(Estimate(0.02), Estimate(0.1), Estimate(share, 0.05), 10.0)
        ends[share] = (gain.low, gain.mean, gain.high)
    assert ends[-0.3] == (0.0, 0.0, 0.0) and ends[0.0][:2] == (0.0, 0.0) and ends[0.0][2] > 0.0
    assert ends[1.2][1] == ends[1.0][1] and ends[1.0][0] < ends[1.2][0]
    assert ends[1.0][2] == pytest.approx(ends[1.2][2], rel=0.05)


def test_the_error_of_the_gain_is_that_of_redraws():
    """Over groups: rows of one share their prompt."""
    estimates = []
    for seed in range(300):
        rewards, again = drawn(seed, 12, 16, 0.6, 0.7)
        estimates.append(measured(rewards, again[..., 0], "threshold", threshold=0.8))
    gains = torch.tensor([estimate.gain for estimate in estimates])
    errors = torch.tensor([estimate.gain_error for estimate in estimates])
    assert float(errors.mean()) == pytest.approx(float(gains.std()), rel=0.15)


def test_what_cannot_be_told():
    values = torch.ones(3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"1 group\(s\) with accepted rows"):
        kept_gain(values, values, 0 * values, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="no better than what their prompts give anyway"):
        kept_gain(values, values, values, torch.arange(3))
    with pytest.raises(InputError, match="at least 2 rows"):
        learned_levels(torch.zeros(1, 2), [0.0, 0.5, 1.0])
    # Rewards that failed are left out.
    lost = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    assert kept_gain(lost, lost, 0 * lost, torch.arange(4)).rows == 3
    assert base_rewards(torch.tensor([[1.0, torch.nan, 3.0]]), "threshold").tolist()[0][::2] == [3.0, 1.0]
