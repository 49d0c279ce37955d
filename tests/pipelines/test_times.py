"""Timesteps of schedulers for our times, and schedules that start in the middle."""

import math

import diffusers
import pytest
import torch
from toy_pipeline import SCHEDULERS

from pgraft_fast.diffusion import Schedule
from pgraft_fast.pipelines.times import Times


def times_of(scheduler, **options):
    scheduler.set_timesteps(**(options or {"num_inference_steps": 50}))
    return Times.of(scheduler, getattr(scheduler, "sigmas", None), torch.as_tensor(scheduler.timesteps))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_levels_are_the_schedulers(name):
    """alpha and sigma at the time of each timestep, against the scheduler's own table or sigmas."""
    scheduler = SCHEDULERS[name]()
    times, schedule = times_of(scheduler), Schedule.from_diffusers(scheduler)
    for place, timestep in enumerate(scheduler.timesteps[:-1]):
        t = times.back(float(timestep))
        assert times.of_time(t) == pytest.approx(float(timestep), abs=1e-6)
        alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
        if name in ("flow", "unipc"):
            # UniPC rounds its timesteps to whole ones.
            assert sigma == pytest.approx(float(scheduler.sigmas[place]), abs=1e-3)
        else:
            level = float(scheduler.alphas_cumprod[int(timestep.round())])
            assert alpha**2 == pytest.approx(level, abs=2e-3) and alpha**2 + sigma**2 == pytest.approx(1.0)


def test_times_apart_from_noise_levels_are_kept_in_a_table():
    """As CogView 4 sets them: the noise levels are shifted, what the network is told is not."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    timesteps = torch.linspace(1000.0, 1.0, 400)
    times = times_of(scheduler, mu=2.0, timesteps=timesteps.tolist(), sigmas=(timesteps / 1000.0).tolist())
    assert times.table is not None
    for u in (0.9, 0.5, 0.123):
        sigma = 2.0 * u / (1.0 + u)
        assert times.of_time(sigma) == pytest.approx(1000.0 * u, abs=0.05)
        assert times.back(1000.0 * u) == pytest.approx(sigma, abs=1e-4)


def test_angles_of_edm():
    """States of variance 1 that predict v: the noise level is an angle, the network is told it, or its logarithm."""
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_data=1.0, sigma_max=500.0, prediction_type="v_prediction"
    )
    times = times_of(scheduler)
    schedule = Schedule.cosine(offset=0.0, t_max=times.scale)
    for sigma, timestep in zip(scheduler.sigmas[:50], scheduler.timesteps, strict=True):
        t = times.back(float(timestep))
        assert times.of_time(t) == pytest.approx(float(timestep), abs=1e-6)
        alpha, level = (float(value) for value in schedule.alpha_sigma(t))
        assert level / alpha == pytest.approx(float(sigma), rel=1e-4)


@pytest.mark.parametrize("schedule", [Schedule.vp_linear(), Schedule.linear_flow(3.0), Schedule.cosine()])
def test_a_schedule_that_starts_in_the_middle(schedule):
    """The law stays, steps and shares count from the start, and it is read back."""
    later = schedule.starting_at(0.6)
    grid = later.grid(10)
    assert grid[0] == pytest.approx(later.t_begin) == pytest.approx(0.6, abs=1e-9) and grid[-1] == 0.0
    assert len(grid) == 11 and bool((grid.diff() < 0).all())
    assert torch.equal(later.alpha(grid), schedule.alpha(grid))
    assert math.isclose(later.cut_logsnr(0.25), float(schedule.logsnr(float(later.t_of_share(0.25)))), rel_tol=1e-9)
    assert Schedule.from_dict(later.to_dict()) == later and Schedule.from_dict(schedule.to_dict()) == schedule
    assert "begin" not in schedule.to_dict() and schedule.t_begin == 1.0
