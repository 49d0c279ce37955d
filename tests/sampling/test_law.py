"""With exact scores, rollouts have the law of the data."""

import pytest
from exact import Mixture, ks

from pgraft_fast.diffusion import PARAMETERIZATIONS, Schedule
from pgraft_fast.sampling import rollout

MIXTURE = Mixture()
SCHEDULES = {
    "flow": Schedule.linear_flow(),
    "shifted_flow": Schedule.linear_flow(3.0),
    "vp_linear": Schedule.vp_linear(),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "edm": Schedule.edm(),
}


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
