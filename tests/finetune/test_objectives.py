"""The two objectives: their formulas, and the laws that networks trained with them reproduce."""

import copy
import functools

import numpy as np
import pytest
import torch
from exact import ks
from quick import Quick
from torch import nn

from pgraft_fast.diffusion import PARAMETERIZATIONS, Schedule, target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import pgraft_loss
from pgraft_fast.sampling import rollout
from pgraft_fast.selection import accept, acceptance_law

FLOW, COSINE, EDM = Schedule.linear_flow(), Schedule.cosine(), Schedule.edm()
SCHEDULES = {"flow": FLOW, "cosine": COSINE, "edm": EDM, "vp_linear": Schedule.vp_linear()}


def constant(value):
    return lambda x, t: torch.full_like(x, value)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_objectives_coincide_without_a_cut(name, parameterization):
    x, t, noise = torch.randn(6, 2, 3), torch.rand(6).clamp(0.05, 0.95), torch.randn(6, 2, 3)
    common = {"parameterization": parameterization, "t": t, "noise": noise, "cut": 0.0, "reduction": "none"}
    state = pgraft_loss(constant(0.3), SCHEDULES[name], x, objective="state", **common)
    clean = pgraft_loss(constant(0.3), SCHEDULES[name], x, objective="clean", **common)
    assert torch.allclose(state, clean, rtol=1e-5)
    c, d = target_coefficients(SCHEDULES[name], t, parameterization)
    target = c[:, None, None] * x + d[:, None, None] * noise
    assert torch.allclose(state, (0.3 - target).square().flatten(1).mean(1), rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cut", [0.1, 0.25, 0.6])
def test_state_objective_in_epsilon(name, cut):
    """The formula of the method: eps target sigma_s (x_s - a x_cut) / S2 with weight S2 / sigma_s^2."""
    schedule = SCHEDULES[name]
    x_cut, noise = torch.randn(2, 7, 4, dtype=torch.float64)
    start = float(schedule.t_of_share(cut))
    t = start + (1 - start) * torch.linspace(0.01, 1, 7, dtype=torch.float64)
    (alpha_cut, sigma_cut), (alpha, sigma) = schedule.alpha_sigma(start), schedule.alpha_sigma(t)
    a = (alpha / alpha_cut)[:, None]
    s2 = sigma[:, None] ** 2 - a**2 * sigma_cut**2
    seen = {}

    def model(x, times):
        seen["x"], seen["t"] = x, times
        return torch.full_like(x, 0.2)

    loss = pgraft_loss(model, schedule, x_cut, cut=cut, t=t, noise=noise, reduction="none")
    x_s = a * x_cut + s2.sqrt() * noise
    target = sigma[:, None] * (x_s - a * x_cut) / s2
    expected = (s2 / sigma[:, None] ** 2 * (0.2 - target) ** 2).mean(1)
    assert torch.allclose(seen["x"], x_s)
    assert torch.allclose(seen["t"], t)
    assert torch.allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("objective", ["state", "clean"])
def test_the_loss_is_bounded_up_to_the_cut_and_the_noise(name, parameterization, objective):
    x, noise = torch.randn(2, 5, 8)
    for t in (torch.full((5,), 0.25 + 1e-7), torch.ones(5)):
        loss = pgraft_loss(
            constant(0.0), SCHEDULES[name], x, cut=0.25, objective=objective, parameterization=parameterization,
            t=t, noise=noise, reduction="none",
        )  # fmt: skip
        assert bool(torch.isfinite(loss).all())
        assert float(loss.max()) < (1e6 if name == "edm" else 1e3)


def test_default_draws_lie_above_the_cut():
    times = []

    def model(x, t):
        times.append(t)
        return x

    pgraft_loss(model, FLOW, torch.randn(4000, 1), cut=0.25)
    assert 0.25 < float(times[0].min()) < 0.26
    assert 0.99 < float(times[0].max()) <= 1.0


class Net(nn.Module):
    """A small network on (x, t) for one-dimensional data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(18, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))
        self.register_buffer("frequency", torch.pi * torch.arange(1, 9) / 2)

    def forward(self, x, t):
        phase = t[:, None] * self.frequency
        # Twice the size of x spreads the modes, which lie close together for a small network.
        return self.layers(torch.cat((x, 2 * x - 1, phase.sin(), phase.cos()), dim=1))


def learned_states(rows, objective, t_cut, steps=2500, batch=256):
    """States at the cut, sampled from a network trained on kept rows."""
    torch.manual_seed(0)
    net = Net()
    average = copy.deepcopy(net)
    pair = [list(model.parameters()) for model in (average, net)]
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = rows[torch.randint(0, rows.shape[0], (batch,))]
        loss = pgraft_loss(net, FLOW, x, t_cut=t_cut, objective=objective, parameterization="velocity")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        with torch.no_grad():
            torch._foreach_lerp_(*pair, 1.0 if step == 0 else 0.002)
    return rollout(
        average, FLOW, shape=(1,), n=20_000, steps=40, solver="heun", parameterization="velocity", seed=99,
        stop=t_cut, batch_size=20_000,
    ).x_cut[t_cut]  # fmt: skip


CUT, CANDIDATES, K = 0.5, 8, 2
LAW = acceptance_law("top_k", n=CANDIDATES, k=K)
MIXTURE = Quick()


@functools.cache
def kept(solver):
    """Accepted rows of rollouts with the exact model, reward = x_0."""
    drawn = rollout(
        MIXTURE.model(FLOW, "velocity"), FLOW, shape=(100,), n=800, steps=60, solver=solver,
        parameterization="velocity", cuts=(CUT,), seed=3, batch_size=800,
    )  # fmt: skip
    x_0, x_cut = drawn.x_0.view(-1, CANDIDATES), drawn.x_cut[CUT].view(-1, CANDIDATES)
    mask = accept(x_0, "top_k", k=K).mask
    return x_0[mask][:, None], x_cut[mask][:, None]


def tilted_cdf(x, deterministic):
    """p_cut(x) P(accept | x_cut = x): closed under the ODE, which keeps quantiles; else an integral over x_0."""
    alpha, sigma = 1 - CUT, CUT
    grid = np.linspace(-3.5, 3.5, 1401)
    if deterministic:
        quantile = torch.tensor(MIXTURE.cdf(grid, alpha, sigma))
        density = MIXTURE.pdf(grid, alpha, sigma) * LAW.density_ratio(quantile).numpy()
    else:
        data = np.linspace(-4, 4, 1601)
        weight = MIXTURE.pdf(data) * LAW.density_ratio(torch.tensor(MIXTURE.cdf(data))).numpy()
        kernel = np.exp(-0.5 * ((grid[:, None] - alpha * data) / sigma) ** 2)
        density = kernel @ weight
    cumulative = np.concatenate(([0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))))
    return np.interp(x, grid, cumulative / cumulative[-1])


@pytest.mark.parametrize("solver", ["ddpm", "heun"])
def test_state_objective_reproduces_the_tilted_law(solver):
    _, x_cut = kept(solver)
    assert ks(x_cut, lambda x: tilted_cdf(x, solver == "heun")) < 0.02
    learned = learned_states(x_cut, "state", CUT)
    assert ks(learned, lambda x: tilted_cdf(x, solver == "heun")) < 0.03


def test_clean_objective_needs_a_stochastic_solver():
    """It learns the forward-noised law of the accepted x_0, which is not the law of a deterministic solver's states."""
    x_0, _ = kept("heun")
    learned = learned_states(x_0, "clean", CUT)
    assert ks(learned, lambda x: tilted_cdf(x, deterministic=False)) < 0.03
    assert ks(learned, lambda x: tilted_cdf(x, deterministic=True)) > 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cut": 1.0}, r"cut=1.0.*\[0, 1\)"),
        ({"t_cut": 1.0}, "t_cut=1.0"),
        ({}, "one of the two"),
        ({"cut": 0.5, "t_cut": 0.5}, "one of the two"),
        ({"cut": 0.5, "objective": "noise"}, "objective='noise' is unknown; known: state, clean"),
        ({"cut": 0.5, "reduction": "sum"}, "reduction='sum'"),
        ({"cut": 0.5, "parameterization": "score"}, "parameterization='score'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        pgraft_loss(constant(0.0), FLOW, torch.randn(2, 3), **arguments)


def test_model_of_the_wrong_shape():
    with pytest.raises(InputError, match="the model returned"):
        pgraft_loss(lambda x, t: x[:, :1], FLOW, torch.randn(2, 3), cut=0.5)
