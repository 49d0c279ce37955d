"""Schedules against their closed forms."""

import json
import math

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError

TABLE = Schedule.from_alphas_cumprod(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
SCHEDULES = {
    "vp_linear": Schedule.vp_linear(),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "edm": Schedule.edm(),
    "linear_flow": Schedule.linear_flow(),
    "shifted_flow": Schedule.linear_flow(shift=3.0),
    "table": TABLE,
}
EVERY = pytest.mark.parametrize("name", SCHEDULES)
TIME = st.floats(1e-3, 1.0 - 1e-3)


@EVERY
def test_data_end_and_order(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    assert float(alpha[0]) == 1.0
    assert float(sigma[0]) == 0.0
    assert bool((schedule.logsnr(t).diff() < 0).all())


@pytest.mark.parametrize("name", ["vp_linear", "scaled_linear", "cosine", "table"])
def test_variance_is_preserved(name):
    alpha, sigma = SCHEDULES[name].alpha_sigma(torch.linspace(0, 1, 301, dtype=torch.float64))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(301, dtype=torch.float64), atol=1e-14)


@EVERY
@given(t=TIME)
def test_log_snr_inverts(name, t):
    schedule = SCHEDULES[name]
    assert abs(float(schedule.t_of_logsnr(schedule.logsnr(t))) - t) < 1e-10


@EVERY
def test_inverse_at_the_ends(name):
    schedule = SCHEDULES[name]
    assert float(schedule.t_of_logsnr(float("inf"))) == pytest.approx(0.0, abs=1e-12)
    assert float(schedule.t_of_logsnr(-1e3)) == 1.0


@EVERY
@given(t=st.floats(0.01, 0.99))
def test_derivatives(name, t):
    schedule, h = SCHEDULES[name], 1e-6
    alpha_dot, sigma_dot = schedule.derivatives(t)
    (alpha_low, sigma_low), (alpha_high, sigma_high) = schedule.alpha_sigma(t - h), schedule.alpha_sigma(t + h)
    # A table is linear between its entries: its derivative jumps at them.
    tolerance = 2e-2 if name == "table" else 1e-5
    assert float(alpha_dot) == pytest.approx(float(alpha_high - alpha_low) / (2 * h), rel=tolerance, abs=1e-6)
    assert float(sigma_dot) == pytest.approx(float(sigma_high - sigma_low) / (2 * h), rel=tolerance, abs=1e-6)


@given(t=TIME)
def test_closed_forms(t):
    assert float(SCHEDULES["linear_flow"].alpha(t)) == pytest.approx(1 - t)
    integral = 0.1 * t + 0.5 * 19.9 * t * t
    assert float(SCHEDULES["vp_linear"].alpha(t)) == pytest.approx(math.exp(-0.5 * integral))
    low, slope = math.sqrt(0.85), math.sqrt(12.0) - math.sqrt(0.85)
    integral = ((low + slope * t) ** 3 - low**3) / (3 * slope)
    assert float(SCHEDULES["scaled_linear"].alpha(t)) == pytest.approx(math.exp(-0.5 * integral))
    angle = 0.5 * math.pi * (0.999 * t + 0.008) / 1.008
    assert float(SCHEDULES["cosine"].alpha(t)) == pytest.approx(
        math.cos(angle) / math.cos(0.5 * math.pi * 0.008 / 1.008)
    )


def test_edm_grid_is_that_of_karras():
    schedule, n = SCHEDULES["edm"], 18
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    expected = (80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    grid = schedule.grid(n)
    assert torch.allclose(schedule.sigma(grid[:-1]), expected, rtol=1e-12)
    assert float(grid[-1]) == 0.0


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_grids_fall_from_noise_to_data(name, steps):
    for parameterization in (None, "epsilon"):
        grid = SCHEDULES[name].grid(steps, parameterization)
        assert grid.shape == (steps + 1,)
        assert float(grid[-1]) == 0.0
        assert bool((grid.diff() < 0).all())
        if parameterization is None:
            assert float(grid[0]) == 1.0
        else:
            assert float(SCHEDULES[name].logsnr(grid[0])) > -10.6


def test_cut_is_a_noise_level():
    flow, shifted = SCHEDULES["linear_flow"], SCHEDULES["shifted_flow"]
    assert flow.cut_logsnr(0.0) == math.inf
    assert float(flow.t_of_logsnr(flow.cut_logsnr(0.25))) == pytest.approx(0.25)
    # A quarter of the shifted steps is left at t = 3/4 / (1 + 2/4) = 1/2.
    assert float(shifted.t_of_logsnr(shifted.cut_logsnr(0.25))) == pytest.approx(0.5)
    assert float(shifted.grid(4)[3]) == pytest.approx(0.5)


@EVERY
def test_dict_round_trip(name):
    schedule = SCHEDULES[name]
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule


def test_tensor_dtype_and_device_are_kept():
    t = torch.rand(5)
    alpha, sigma = SCHEDULES["cosine"].alpha_sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float32
    assert SCHEDULES["cosine"].logsnr(torch.tensor([0, 1])).dtype == torch.float64


@pytest.mark.parametrize("cut", [-0.1, 1.0, 2.0, float("nan")])
def test_cut_outside_its_range(cut):
    with pytest.raises(InputError, match=r"cut=.*\[0, 1\)"):
        SCHEDULES["cosine"].cut_logsnr(cut)


def test_bad_schedules():
    with pytest.raises(InputError, match="steps=0"):
        SCHEDULES["cosine"].grid(0)
    with pytest.raises(InputError, match="falling"):
        Schedule.from_alphas_cumprod(torch.tensor([0.1, 0.9]))
    with pytest.raises(InputError, match="unknown"):
        Schedule.from_dict({"name": "linear"})


def test_a_table_is_brought_to_a_device_once():
    """A copy from the host in each training step makes a GPU wait."""
    law, other = (Schedule.from_diffusers(diffusers.DDPMScheduler(num_train_timesteps=steps)).law for steps in (50, 60))
    here, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert law._table(here) is law._table(double) and law._table(here) is not other._table(here)
    assert law._table(torch.zeros(1, device="meta")).device.type == "meta"
