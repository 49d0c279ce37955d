"""Timesteps that are not of the schedule, numbers where tensors are wanted, and what comes before and after."""

import pytest
import torch
from schedulers.twins import KINDS, OUT, PAIRS, X, apart, on_both, step

SIGMA_KINDS = ("euler", "dpm", "flow")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def test_a_second_schedule_on_the_same_scheduler():
    def use(scheduler):
        for steps in (8, 5, 8):
            scheduler.set_timesteps(steps)
            states = [step(scheduler, t)[0] for t in scheduler.timesteps]
        return states

    for kind in KINDS:
        on_both(kind, use)


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
@pytest.mark.parametrize(
    "t", [7, 1000, 1200, 500.0, torch.tensor(500.0), -1, -5, torch.tensor([1, 2]), torch.tensor(500, dtype=torch.int32)]
)
def test_timesteps_that_are_none(kind, t):
    """Where diffusers has no such index ours raises too; where it counts from the end, ours does."""
    on_both(kind, lambda scheduler: step(scheduler, t))


def test_timesteps_beyond_the_training_schedule():
    """An offset of 1 with every training step asks for number 1000, which there is not; those below work."""
    for kind in ("ddim", "ddpm"):
        error = on_both(kind, lambda scheduler: step(scheduler, 1000), {"steps_offset": 1}, steps=1000)
        assert isinstance(error, IndexError)
        on_both(kind, lambda scheduler: step(scheduler, 500), {"steps_offset": 1}, steps=1000)
    on_both("ddim", lambda scheduler: step(scheduler, 500), {"trained_betas": [0.01] * 100})


def test_before_and_after_the_schedule():
    # One step of the thousand: the ratio of two levels is divided in the precision of these.
    for double in (False, True):
        mine, theirs = (cls() for cls in reversed(PAIRS["ddpm"]))
        if double:
            mine.alphas_cumprod, theirs.alphas_cumprod = mine.alphas_cumprod.double(), theirs.alphas_cumprod.double()
        assert apart(step(mine, 7)[0], step(theirs, 7)[0]) <= 1e-6
    for kind in KINDS:
        on_both(kind, lambda scheduler: step(scheduler, scheduler.timesteps[400]), {"num_train_timesteps": 500}, 0)

    def past(scheduler):
        last = scheduler.timesteps[-1]
        scheduler.set_begin_index(7)
        return step(scheduler, last) + step(scheduler, last)

    for kind in SIGMA_KINDS:
        assert isinstance(on_both(kind, past), IndexError)
    assert isinstance(on_both("dpm", past, {"solver_order": 1}), IndexError)


def test_integers_are_no_timesteps_of_euler():
    for kind in ("euler", "flow"):
        error = on_both(kind, lambda scheduler: step(scheduler, int(scheduler.timesteps[0])))
        assert isinstance(error, ValueError)
        assert isinstance(on_both(kind, lambda scheduler: step(scheduler, 3.3)), IndexError)


@pytest.mark.parametrize("bound", [{"s_tmin": 0.7}, {"s_tmax": 0.1}])
def test_churn_within_a_bound_that_is_a_level(bound):
    """0.7 is more in float64 than in float32, 0.1 less: diffusers compares in float32."""

    def use(scheduler):
        scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.1, 0.0])
        return [step(scheduler, t, s_churn=3.0, **bound)[0] for t in scheduler.timesteps]

    on_both("euler", use)


def test_euler_without_the_scaling_call_before():
    """diffusers warns, and goes on."""
    states = []
    for cls in PAIRS["euler"]:
        scheduler = cls()
        scheduler.set_timesteps(8)
        states.append(scheduler.step(OUT, scheduler.timesteps[3], X).prev_sample)
    assert torch.equal(*states)
