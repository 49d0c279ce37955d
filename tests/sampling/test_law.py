"""With exact scores, rollouts have the law of the data."""

import pytest
import torch
from exact import Mixture, ks
from quick import Quick

from pgraft_fast.diffusion import PARAMETERIZATIONS, Schedule
from pgraft_fast.sampling import rollout

MIXTURE = Quick()
SCHEDULES = {
    "flow": Schedule.linear_flow(),
    "shifted_flow": Schedule.linear_flow(3.0),
    "vp_linear": Schedule.vp_linear(),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "edm": Schedule.edm(),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_quick_network_is_the_exact_one(name, parameterization):
    x = torch.linspace(-4.0, 4.0, 500)[:, None]
    for time in (0.001, 0.3, 0.7, 1.0):
        t = torch.full((500,), time)
        quick, exact = (mixture.model(SCHEDULES[name], parameterization)(x, t) for mixture in (MIXTURE, Mixture()))
        assert torch.allclose(quick, exact, rtol=1e-6, atol=1e-6)


# 20,000 independent samples: every element of a state is one.
def law(schedule, solver, parameterization="epsilon", cut=0.5, eta=None):
    drawn = rollout(
        MIXTURE.model(schedule, parameterization), schedule, shape=(40,), n=500, steps=200, solver=solver, eta=eta,
        parameterization=parameterization, seed=1, batch_size=500, cuts=(cut,),
    )  # fmt: skip
    alpha, sigma = (float(value) for value in schedule.alpha_sigma(drawn.t_cut[cut]))
    return ks(drawn.x_0, MIXTURE.cdf), ks(drawn.x_cut[cut], lambda x: MIXTURE.cdf(x, alpha, sigma))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("solver", "eta"), [("ddpm", None), ("ddim", 0.5), ("euler_sde", None), ("euler_sde", 0.5)])
def test_stochastic_solvers(name, solver, eta):
    at_data, at_cut = law(SCHEDULES[name], solver, eta=eta)
    assert at_data < 0.02
    assert at_cut < 0.02


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_deterministic_solvers(solver):
    for schedule in SCHEDULES.values():
        assert max(law(schedule, solver)) < 0.02


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_parameterizations(parameterization):
    for name in ("flow", "cosine", "edm"):
        assert max(law(SCHEDULES[name], "ddpm", parameterization)) < 0.02
