"""Conversions among epsilon, v, x_0 and velocity."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.diffusion import PARAMETERIZATIONS, Schedule, convert, target_coefficients, x_0_coefficients
from pgraft_fast.errors import InputError

SCHEDULES = [Schedule.vp_linear(), Schedule.cosine(), Schedule.edm(), Schedule.linear_flow()]
NAMES = st.sampled_from(PARAMETERIZATIONS)


@given(
    schedule=st.sampled_from(SCHEDULES), source=NAMES, target=NAMES, t=st.floats(0.05, 0.95), seed=st.integers(0, 99)
)
def test_conversions(schedule, source, target, t, seed):
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    times = torch.full((3,), t, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    x_t = alpha * x_0 + sigma * eps

    def output(name):
        c, d = target_coefficients(schedule, t, name)
        return c * x_0 + d * eps

    converted = convert(output(source), x_t, schedule, times, source, target)
    scale = output(target).abs().max()
    assert float((converted - output(target)).abs().max() / scale) < 1e-9
    p, q = x_0_coefficients(schedule, t, source)
    assert torch.allclose(p * x_t + q * output(source), x_0, atol=1e-8)


def test_velocity_of_the_linear_flow():
    c, d = target_coefficients(Schedule.linear_flow(), torch.tensor([0.2, 0.9]), "velocity")
    assert c.tolist() == [-1.0, -1.0]
    assert d.tolist() == [1.0, 1.0]


def test_float_times_and_unknown_names():
    schedule, x = Schedule.linear_flow(), torch.randn(2, 3)
    assert torch.allclose(convert(x, x, schedule, 0.5, "velocity", "velocity"), x, atol=1e-6)
    with pytest.raises(InputError, match="'noise' is unknown; known: epsilon"):
        convert(x, x, schedule, 0.5, "noise", "v")
