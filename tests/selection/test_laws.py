"""Closed forms of the accepted laws: known values, and accepted samples of exact rollouts."""

import math

import numpy as np
import pytest
import torch
from exact import Mixture
from scipy import stats
from scipy.special import digamma

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import rollout
from pgraft_fast.selection import accept, acceptance_law

MIXTURE = Mixture()
GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)


@pytest.mark.parametrize(
    ("n", "k", "kl", "mean"),
    [(4, 1, 0.636, 0.80), (10, 3, 0.769, 0.82), (100, 10, 2.019, 0.95), (100, 50, 0.603, None), (7, 7, 0.0, 0.5)],
)
def test_published_values(n, k, kl, mean):
    law = acceptance_law("top_k", n=n, k=k)
    assert law.kl == pytest.approx(kl, abs=6e-4)
    assert mean is None or law.mean_quantile == pytest.approx(mean, abs=6e-3)
    assert law.acceptance_rate == k / n


@pytest.mark.parametrize("n", [1, 2, 4, 64, 1024])
def test_best_of_n(n):
    law = acceptance_law("best_of_n", n=n)
    assert law.kl == pytest.approx(math.log(n) - (n - 1) / n)
    assert torch.allclose(law.density_ratio(GRID), n * GRID ** (n - 1))
    assert law.mean_quantile == pytest.approx(n / (n + 1))


def test_preference_is_the_better_of_two():
    law = acceptance_law("preference")
    assert law.kl == pytest.approx(0.193147, abs=1e-6)
    assert torch.allclose(law.density_ratio(GRID), 2 * GRID)


@pytest.mark.parametrize(("n", "k"), [(5, 2), (16, 4), (40, 39)])
def test_top_k_is_the_binomial_sum(n, k):
    law = acceptance_law("top_k", n=n, k=k)
    terms = [math.comb(n - 1, j) * (1 - GRID) ** j * GRID ** (n - 1 - j) for j in range(k)]
    expected = n / k * torch.stack(terms).sum(0)
    assert torch.allclose(law.density_ratio(GRID), expected, atol=1e-10)
    assert torch.allclose(law.reshaped_reward(GRID[1:]), expected[1:].log(), atol=1e-6)


@pytest.mark.parametrize(
    "law",
    [
        acceptance_law("top_k", n=16, k=4),
        acceptance_law("threshold", quantile=0.8),
        acceptance_law("classical", temperature=0.3),
        acceptance_law("classical", temperature=2.0, reward_of_quantile=lambda f: f**3),
        acceptance_law("binary", quantile=0.6),
    ],
    ids=lambda law: law.rule,
)
def test_kl_and_mean_follow_from_the_density(law):
    middle = ((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).unsqueeze(0)
    rho = law.density_ratio(middle)
    assert rho.shape == middle.shape
    assert float(rho.mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(torch.xlogy(rho, rho).mean()) == pytest.approx(law.kl, abs=1e-4)
    assert float((middle * rho).mean()) == pytest.approx(law.mean_quantile, abs=1e-4)


def test_classical_of_a_uniform_reward():
    a = 0.5
    law = acceptance_law("classical", temperature=a)
    normaliser = a * math.expm1(1 / a)
    assert torch.allclose(law.density_ratio(GRID), (GRID / a).exp() / normaliser)
    mean = (1 / a - 1) * math.exp(1 / a) + 1
    mean *= a * a / normaliser
    assert law.mean_quantile == pytest.approx(mean)
    assert law.kl == pytest.approx(mean / a - math.log(normaliser))


def test_binary_with_copies():
    """Counted over all batches: distinct positives of a batch, once each."""
    masses = torch.tensor([0.3, 0.1, 0.02, 0.002])
    n, batches = 12, 40_000
    law = acceptance_law("binary", n=n, masses=masses)
    generator = np.random.default_rng(0)
    negative = 1.0 - float(masses.sum())
    drawn = generator.choice(5, size=(batches, n), p=[*masses.tolist(), negative])
    got = accept(
        torch.tensor(drawn < 4).float(),
        "binary",
        copies_of=torch.tensor(drawn),
        sample_id=torch.arange(drawn.size).view(batches, n),
    )
    counts = np.bincount(drawn[got.mask.numpy()], minlength=4)
    measured = torch.tensor(counts / counts.sum())
    expected = masses.double() * law.density_ratio(masses.double())
    assert torch.allclose(measured, expected, rtol=0.06, atol=1e-3)
    assert counts.sum() / drawn.size == pytest.approx(law.acceptance_rate, rel=0.01)
    kl = float((measured * (measured / masses).log()).sum())
    assert kl == pytest.approx(law.kl, rel=0.02)


def kl_of_quantiles(quantiles: np.ndarray) -> float:
    """KL of a law on [0, 1] against the uniform one, from samples: spacings estimator, bias removed."""
    n, m = quantiles.size, 200
    ordered = np.concatenate((np.zeros(m), np.sort(quantiles), np.ones(m)))
    spacing = ordered[2 * m :] - ordered[: -2 * m]
    width = np.concatenate((np.arange(m, 2 * m), np.full(n - 2 * m, 2 * m), np.arange(2 * m, m, -1)))[:n]
    return float(-np.mean(np.log(spacing) - digamma(width) + digamma(n + 1)))


@pytest.fixture(scope="module")
def exact_rollout():
    """480,000 samples of the mixture with the exact score; reward = x, so that F is the mixture's own CDF.

    Heun's error at 60 steps is far below the sampling error.
    """
    schedule = Schedule.linear_flow()
    drawn = rollout(
        MIXTURE.model(schedule, "velocity"), schedule, shape=(100,), n=4800, steps=60, solver="heun",
        parameterization="velocity", seed=7, batch_size=800,
    )  # fmt: skip
    return drawn.x_0.flatten()


@pytest.mark.parametrize(
    ("rule", "candidates", "arguments", "law"),
    [
        ("top_k", 16, {"k": 4}, acceptance_law("top_k", n=16, k=4)),
        ("top_k", 10, {"k": 3}, acceptance_law("top_k", n=10, k=3)),
        ("best_of_n", 4, {}, acceptance_law("best_of_n", n=4)),
        ("preference", 2, {}, acceptance_law("preference")),
        ("threshold", 5, {"threshold": 0.9}, acceptance_law("threshold", quantile=float(MIXTURE.cdf(0.9)))),
        ("binary", 8, {"threshold": 0.5}, acceptance_law("binary", quantile=float(MIXTURE.cdf(0.5)))),
        ("classical", 8, {"temperature": 0.8, "r_max": 3.0}, None),
    ],
    ids=["top_k_16_4", "top_k_10_3", "best_of_4", "preference", "threshold", "binary", "classical"],
)
def test_accepted_samples_have_the_closed_form_kl(exact_rollout, rule, candidates, arguments, law):
    if law is None:
        x = np.linspace(-4, 4, 20_001)
        law = acceptance_law(
            rule, temperature=arguments["temperature"], reward_of_quantile=lambda f: np.interp(f, MIXTURE.cdf(x), x)
        )
    reward = exact_rollout[: exact_rollout.numel() // candidates * candidates].view(-1, candidates)
    got = accept(reward, rule, seed=5, **arguments)
    quantiles = MIXTURE.cdf(reward[got.mask].double().numpy())
    if rule in ("threshold", "binary"):
        # Uniform above the threshold: the law is one number, the share that is accepted.
        rate = float(got.count) / reward.numel()
        assert -math.log(rate) == pytest.approx(law.kl, rel=0.02)
        above = (quantiles - (1 - math.exp(-law.kl))) / math.exp(-law.kl)
        assert stats.kstest(above, "uniform").statistic < 0.01
    else:
        assert kl_of_quantiles(quantiles) == pytest.approx(law.kl, rel=0.02)
    assert quantiles.mean() == pytest.approx(law.mean_quantile, rel=0.005)


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        ("top_k", {"n": 4}, "k=None"),
        ("top_k", {"n": 4, "k": 5}, "k=5 is more than the n=4"),
        ("best_of_n", {}, "n=None"),
        ("threshold", {}, "quantile=None"),
        ("threshold", {"quantile": 1.0}, "quantile=1.0"),
        ("classical", {}, "temperature=None"),
        ("binary", {"n": 3, "masses": torch.tensor([0.9, 0.9])}, "masses must be"),
        ("random", {}, "rule='random' has no law"),
    ],
)
def test_bad_input(rule, arguments, message):
    with pytest.raises(InputError, match=message):
        acceptance_law(rule, **arguments)
