"""A world of several latents a feature, against integration over the feature."""

import pytest
import torch

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.parameterization import convert
from pgraft_fast.sampling import Guided
from pgraft_fast_benchmarks.lifted import Lifted, repeated

MEANS, SPREAD = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 0.3
GRID = torch.linspace(-3.0, 4.0, 20_001, dtype=torch.float64)
DENSITY = torch.exp(-0.5 * ((GRID[:, None] - MEANS) / SPREAD) ** 2).sum(dim=1)
SCHEDULES = {"epsilon": Schedule.scaled_linear(), "velocity": Schedule.linear_flow(), "v": Schedule.cosine()}


def posterior_mean(seen, alpha, sigma):
    """E[x_0 | every value of seen (n, k) is alpha x_0 + sigma noise], by integration: (n,)."""
    log = -0.5 * ((seen[:, :, None] - alpha * GRID) / sigma).square().sum(dim=1)
    weight = torch.exp(log - log.max(dim=1, keepdim=True).values) * DENSITY
    return (weight * GRID).sum(dim=1) / weight.sum(dim=1)


def exact(schedule, parameterization):
    """The optimal model of x: every latent is drawn from the mixture."""

    def model(x, t):
        rows = []
        for state, time in zip(x, t, strict=True):
            alpha, sigma = (float(value) for value in schedule.alpha_sigma(time))
            x_0 = posterior_mean(state.reshape(-1, 1), alpha, sigma).view_as(state)
            rows.append(convert(x_0[None], state[None], schedule, time[None], "x_0", parameterization)[0])
        return torch.stack(rows)

    return model


@pytest.mark.parametrize("parameterization", SCHEDULES)
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("own", [True, False])
def test_the_model_of_blocks_is_the_optimal_one(parameterization, side, own):
    """own: whether blocks have the schedule of the model."""
    inner = SCHEDULES[parameterization]
    schedule = inner if own else Schedule.cosine()
    t = torch.tensor([0.15, 0.5, 0.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x_0 = MEANS[torch.randint(3, (3, 2, 3, 2), generator=generator)]
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in schedule.alpha_sigma(t))
    y_0 = repeated(x_0, side)
    y = alpha * y_0 + sigma * torch.randn(y_0.shape, generator=generator, dtype=torch.float64)
    answer = Lifted(exact(inner, parameterization), inner, parameterization, side, schedule)(y, t)
    for row in range(3):
        blocks = y[row].unfold(1, side, side).unfold(2, side, side).reshape(12, side * side)
        mean = posterior_mean(blocks, float(alpha[row]), float(sigma[row])).view(2, 3, 2)
        wanted = convert(
            repeated(mean[None], side), y[row][None], schedule, t[row : row + 1], "x_0", parameterization
        )  # fmt: skip
        torch.testing.assert_close(answer[row][None], wanted, rtol=1e-4, atol=1e-5)


def test_guided_answers_and_the_ends_of_the_range():
    schedule = Schedule.linear_flow()
    y = torch.randn(2, 1, 4, 4)

    def guided(x, t, condition):
        assert bool((t > 0).all()) and bool(x.isfinite().all())
        return Guided(x, 2 * x, 3.0)

    lifted = Lifted(guided, schedule, "velocity", 2)
    for t in (1e-4, 1.0):
        answer = lifted(y, torch.full((2,), t), torch.zeros(2, dtype=torch.int64))
        assert (
            answer.scale == 3.0 and bool(answer.out.isfinite().all()) and not torch.equal(answer.out, answer.out_null)
        )
    assert lifted.calls_a_sample == 1
