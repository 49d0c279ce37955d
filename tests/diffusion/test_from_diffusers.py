"""Schedules read from diffusers' schedulers have diffusers' noise."""

import diffusers
import pytest
import torch

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers
from pgraft_fast.errors import InputError

BETA_SCHEDULERS = [
    diffusers.DDIMScheduler(),
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    diffusers.DDPMScheduler(beta_schedule="sigmoid"),
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    diffusers.DPMSolverMultistepScheduler(trained_betas=[0.01 * (i + 1) for i in range(20)]),
    diffusers.PNDMScheduler(num_train_timesteps=250),
    diffusers.UniPCMultistepScheduler(),
]


@pytest.mark.parametrize("scheduler", BETA_SCHEDULERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("source", ["scheduler", "dict"])
def test_beta_schedules(scheduler, source):
    definition = scheduler if source == "scheduler" else {**scheduler.config, "_class_name": type(scheduler).__name__}
    schedule = Schedule.from_diffusers(definition)
    table = scheduler.alphas_cumprod.double()
    t = torch.arange(1, table.numel() + 1, dtype=torch.float64) / table.numel()
    assert torch.allclose(schedule.alpha(t), table.sqrt(), atol=2e-5, rtol=2e-5)
    assert torch.allclose(schedule.sigma(t), (1 - table).sqrt(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("cls", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_edm(cls):
    scheduler = cls(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    scheduler.set_timesteps(12)
    schedule = Schedule.from_diffusers(scheduler.config)
    assert torch.allclose(schedule.sigma(schedule.grid(12))[:-1].float(), scheduler.sigmas[:-1], rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = Schedule.from_diffusers(scheduler)
    n = 10
    # Diffusers stretches the last time to its smallest sigma; the shift itself is the same.
    scheduler.set_timesteps(sigmas=[1.0 - i / n for i in range(n)])
    assert torch.allclose(schedule.grid(n).float(), scheduler.sigmas, atol=1e-6)
    assert parameterization_from_diffusers(scheduler) == "velocity"


def test_flow_sigmas_of_other_schedulers():
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=2.0, prediction_type="flow_prediction"
    )
    assert Schedule.from_diffusers(scheduler.config) == Schedule.linear_flow(2.0)


def test_dynamic_shift_needs_a_number():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(InputError, match="pass shift="):
        Schedule.from_diffusers(scheduler)
    assert Schedule.from_diffusers(scheduler, shift=1.5) == Schedule.linear_flow(1.5)


@pytest.mark.parametrize(("kind", "name"), [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "x_0")])
def test_parameterizations(kind, name):
    assert parameterization_from_diffusers(diffusers.DDIMScheduler(prediction_type=kind)) == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "X", "beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}, "sigma_schedule"),
        (7, "got int"),
    ],
)
def test_what_cannot_be_read(config, message):
    with pytest.raises(InputError, match=message):
        Schedule.from_diffusers(config)
    with pytest.raises(InputError, match="prediction_type"):
        parameterization_from_diffusers({"prediction_type": "score"})
