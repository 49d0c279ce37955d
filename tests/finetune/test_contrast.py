"""The contrast objective: its formula, its optimum in closed form, and where it learns nothing."""

import numpy as np
import pytest
import torch
from exact import Mixture

from pgraft_fast.diffusion import Schedule, Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Kept, pgraft_loss
from pgraft_fast.finetune.kept import acceptance_advantages, reward_advantages

FLOW, COSINE = Schedule.linear_flow(), Schedule.cosine()
MIXTURE = Mixture()
ONE = Mixture((1.0,), MIXTURE.mean[1:], MIXTURE.std[1:])


def gradient(loss_of, out):
    """Of a loss in the model's answer."""
    out = out.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss_of(out), out)
    return slope


@pytest.mark.parametrize("schedule", [FLOW, COSINE], ids=["flow", "cosine"])
@pytest.mark.parametrize("parameterization", ["epsilon", "velocity", "x_0"])
@pytest.mark.parametrize("cut", [0.0, 0.3])
def test_the_gradient_is_that_of_both_sides(schedule, parameterization, cut):
    """(1 + A)/2 |(1 - b) o + b n - y|^2 + (1 - A)/2 |(1 + b) o - b n - y|^2, of which ours is 1/b^2."""
    torch.manual_seed(0)
    x, noise, o, n = torch.randn(4, 8, 5, dtype=torch.float64)
    t = torch.linspace(cut + 0.05, 0.98, 8, dtype=torch.float64)
    a, b = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64), 0.3
    common = {"parameterization": parameterization, "t": t, "noise": noise, "cut": cut, "reduction": "none"}
    ours = gradient(
        lambda out: pgraft_loss(
            lambda x, t: out, schedule, x, objective="contrast", frozen=lambda x, t: o, advantage=a / b, **common
        ).sum(), n,
    )  # fmt: skip

    def squared(answer):
        return pgraft_loss(lambda x, t: answer, schedule, x, objective="state", **common)

    both = gradient(
        lambda out: ((1 + a) / 2 * squared((1 - b) * o + b * out) + (1 - a) / 2 * squared((1 + b) * o - b * out)).sum(),
        n,
    )
    assert torch.allclose(ours, both / b**2, rtol=1e-9, atol=1e-12)


def drawn(n, seed=0):
    """x_0 of the mixture and its component, in groups of 1,000 samples."""
    rng = np.random.default_rng(seed)
    part = rng.random(n) < MIXTURE.weight[1]
    mean, std = (np.array(values)[part.astype(int)] for values in (MIXTURE.mean, MIXTURE.std))
    x = torch.tensor(mean + std * rng.standard_normal(n))
    return x[:, None], torch.tensor(part)


def balanced(x, accepted, strength):
    """Rows and advantages of one pass."""
    groups, ids = accepted.view(-1, 1000), torch.arange(x.shape[0])
    advantage = acceptance_advantages(groups, torch.zeros(groups.shape), strength).flatten().double()
    side = 2 * torch.arange(groups.shape[0])[:, None] + groups
    rows, _ = Kept(x, ids, None, 0.0, advantage, side.flatten()).order(seed=0, epoch=0)
    return x[rows], advantage[rows]


def residuals(answer, frozen, x, advantage, t, edges):
    """Per interval of x_t: mean of (target - answer) in units of its standard error, and the mean itself."""
    seen = {}

    def model(x_t, times):
        seen["x"], seen["out"] = x_t, answer(x_t, times).requires_grad_(True)
        return seen["out"]

    torch.manual_seed(1)
    loss = pgraft_loss(
        model, FLOW, x, cut=0.0, objective="contrast", parameterization="velocity", frozen=frozen, advantage=advantage,
        t=torch.full((x.shape[0],), t, dtype=torch.float64), reduction="none",
    )  # fmt: skip
    (slope,) = torch.autograd.grad(loss.sum(), seen["out"])
    rest, place = -0.5 * slope.flatten(), torch.bucketize(seen["x"].flatten(), edges)
    binned = [rest[place == number] for number in range(1, edges.numel())]
    means = torch.stack([values.mean() for values in binned])
    return means / torch.stack([values.std() / values.numel() ** 0.5 for values in binned]), means


@pytest.mark.parametrize("t", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_optimum_on_a_mixture(t, strength):
    """Accepted is one of the two components: o, y+ and both densities are known."""
    x, accepted = drawn(400_000)
    rows, advantage = balanced(x, accepted, strength)
    frozen = MIXTURE.model(FLOW, "velocity")
    aim = ONE.model(FLOW, "velocity")
    other = Mixture((1.0,), MIXTURE.mean[:1], MIXTURE.std[:1])
    edges = torch.linspace(-1.2, 1.2, 13, dtype=torch.float64)

    def weight(x_t):
        ours, theirs = (torch.tensor(mixture.pdf(x_t.numpy(), 1 - t, t)) for mixture in (ONE, other))
        return 2 * ours / (ours + theirs)

    def optimum(x_t, times):
        return frozen(x_t, times) + strength * weight(x_t) * (aim(x_t, times) - frozen(x_t, times))

    scores, _ = residuals(optimum, frozen, rows, advantage, t, edges)
    assert float(scores.abs().max()) < 4.5
    # The frozen model itself is far from it, and so is twice the step.
    for factor in (0.0, 2.0):
        wrong, _ = residuals(
            lambda x_t, times, f=factor: frozen(x_t, times) + f * (optimum(x_t, times) - frozen(x_t, times)),
            frozen, rows, advantage, t, edges,
        )  # fmt: skip
        assert float(wrong.abs().max()) > 10


def test_strength_1_aims_at_the_accepted_law_where_noise_is_all():
    x, accepted = drawn(400_000)
    rows, advantage = balanced(x, accepted, 1.0)
    aim = ONE.model(FLOW, "velocity")
    scores, _ = residuals(
        aim, MIXTURE.model(FLOW, "velocity"), rows, advantage, 1.0, torch.linspace(-2, 2, 9, dtype=torch.float64)
    )
    assert float(scores.abs().max()) < 4.5


@pytest.mark.parametrize("strength", [1.0, 5.0])
def test_labels_at_random_teach_nothing_whatever_law_the_rows_have(strength):
    """The frozen model is not the posterior mean of the rows, as under guidance: the ordinary loss goes there."""
    x, _ = drawn(400_000)
    accepted = uniform(7, torch.arange(x.shape[0]), 0, Stream.PROMPTS) < 0.4
    rows, advantage = balanced(x, accepted, strength)
    frozen = ONE.model(FLOW, "velocity")
    edges = torch.linspace(-0.8, 1.2, 9, dtype=torch.float64)
    scores, means = residuals(frozen, frozen, rows, advantage, 0.6, edges)
    assert float(scores.abs().max()) < 4.5
    assert float(means.abs().max()) < 0.03 * strength
    # All kept, each with advantage 1: the ordinary loss.
    _, ordinary = residuals(frozen, frozen, rows, torch.ones_like(advantage), 0.6, edges)
    assert float(ordinary.abs().max()) > 0.5


def test_a_pass_takes_as_many_of_both_sides_and_all_in_turn():
    sizes = [(1, 3), (3, 1), (2, 2), (5, 2)]
    side = torch.cat([
        torch.cat((torch.full((kept,), 2 * group + 1), torch.full((lost,), 2 * group)))
        for group, (kept, lost) in enumerate(sizes)
    ])  # fmt: skip
    ids = torch.arange(side.numel()) * 3 + 100
    kept = Kept(torch.zeros(side.numel(), 1), ids, None, 0.2, torch.ones(side.numel()), side)
    assert kept.rows == 2 * (1 + 1 + 2 + 2)
    seen = torch.zeros(side.numel(), dtype=torch.int64)
    firsts = set()
    for epoch in range(40):
        rows, key = kept.order(5, epoch)
        # Side by side: the accepted one, a rejected one of its group, and the noise of the first for both.
        pairs = rows.view(-1, 2)
        assert torch.equal(side[pairs[:, 0]], side[pairs[:, 1]] + 1) and bool((side[pairs[:, 0]] % 2 == 1).all())
        assert torch.equal(key.view(-1, 2), ids[pairs[:, :1]].expand(-1, 2))
        assert rows.unique().numel() == rows.numel() == kept.rows
        counts = torch.bincount(side[rows], minlength=8).view(-1, 2)
        assert counts.tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
        seen[rows] += 1
        firsts.add(int(side[rows[0]]) // 2)
        assert torch.equal(rows, kept.order(5, epoch)[0])
    assert int(seen.min()) >= 5
    assert firsts == {0, 1, 2, 3}
    assert Kept(kept.x[:0], ids[:0], None, 0.0, torch.ones(0), side[:0]).rows == 0


def test_a_pass_over_rewards_takes_whole_groups():
    # Numbers of groups may be above that of the rows.
    group = torch.tensor([0, 7, 7, 30, 0, 30, 30])
    ids = torch.tensor([5, 9, 8, 20, 4, 22, 21])
    kept = Kept(torch.zeros(7, 1), ids, None, 0.2, torch.ones(7), group=group)
    firsts = set()
    for epoch in range(30):
        rows, key = kept.order(5, epoch)
        assert sorted(rows.tolist()) == list(range(7))
        assert len(group[rows].unique_consecutive()) == 3
        leader = {0: 4, 7: 8, 30: 20}
        assert key.tolist() == [leader[int(number)] for number in group[rows]]
        firsts.add(int(group[rows[0]]))
    assert firsts == {0, 7, 30} and kept.rows == 7
    part = kept.where(group != 7)
    assert part.rows == 5 and part.group.tolist() == [0, 30, 0, 30, 30] and part.side is None


def test_noise_that_is_shared_leaves_less_in_the_difference():
    """Labels drawn at random: what the gradient of a batch is then, is noise alone."""
    x, _ = drawn(20_000)
    accepted = uniform(7, torch.arange(x.shape[0]), 0, Stream.PROMPTS) < 0.25
    rows, advantage = balanced(x, accepted, 1.0)
    out = torch.zeros(1, 1, dtype=torch.float64)
    sizes = []
    for shared in (True, False):
        gradients = []
        for start in range(0, 4096, 64):
            part = slice(start, start + 64)
            noise = torch.randn(32, 1, dtype=torch.float64).repeat_interleave(2, 0) if shared else torch.randn(64, 1)
            t = torch.linspace(0.6, 1.0, 32, dtype=torch.float64).repeat_interleave(2)
            gradients.append(gradient(
                lambda answer, part=part, noise=noise, t=t: pgraft_loss(
                    lambda x, t: answer.expand_as(x), FLOW, rows[part], cut=0.0, objective="contrast", t=t, noise=noise,
                    parameterization="epsilon", frozen=lambda x, t: torch.zeros_like(x), advantage=advantage[part],
                ), out,
            ))  # fmt: skip
        sizes.append(float(torch.cat(gradients).std()))
    assert sizes[0] < 0.05 * sizes[1]


def test_advantages_of_acceptance():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    rewards = torch.rand(4, 4)
    rewards[3, 3] = torch.nan
    advantages = acceptance_advantages(mask, rewards, 2.0)
    assert advantages[0].tolist() == [3.0, -3.0, -3.0, -3.0]
    assert advantages[1].tolist() == advantages[2].tolist() == [0.0] * 4
    assert advantages[3].tolist() == pytest.approx([4 / 3, 4 / 3, -4 / 3, 0.0])


def test_advantages_of_rewards():
    rewards = torch.tensor([[1.0, 3.0, 2.0], [0.3, 0.3, 0.3], [5.0, 7.0, torch.inf]])
    advantages = reward_advantages(rewards, 1.0)
    # Squares within groups: 2, 0, 2 over (2 + 2 + 1) degrees of freedom.
    scale = (4 / 5) ** 0.5
    assert advantages[0].tolist() == pytest.approx([-1 / scale, 1 / scale, 0.0])
    assert advantages[1].tolist() == [0.0] * 3
    assert advantages[2].tolist() == pytest.approx([-1 / scale, 1 / scale, 0.0])
    assert torch.equal(reward_advantages(torch.full((2, 3), 0.1), 3.0), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": "contrast"},
        {"objective": "contrast", "advantage": torch.ones(2)},
        {"objective": "state", "frozen": lambda x, t: x, "advantage": torch.ones(2)},
    ],
)
def test_what_belongs_together(arguments):
    with pytest.raises(InputError, match="frozen and advantage belong to contrast"):
        pgraft_loss(lambda x, t: x, FLOW, torch.randn(2, 3), cut=0.5, **arguments)
