"""Steps planned ahead are the steps made one by one; no step waits for a device, its tables there included."""

import pytest
import torch
from schedulers.twins import PAIRS

from pgraft_fast.sampling.guidance import Guide

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning:diffusers")

CASES = [
    ("ddim", {}, {"eta": 0.5}),
    ("ddim", {"clip_sample": False, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {}),
    ("ddim", {"thresholding": True, "sample_max_value": 2.0}, {"eta": 1.0, "use_clipped_model_output": True}),
    ("ddpm", {"variance_type": "fixed_small_log"}, {}),
    ("euler", {"prediction_type": "v_prediction"}, {"s_churn": 3.0, "s_noise": 1.01}),
    ("euler", {"use_karras_sigmas": True}, {}),
    ("dpm", {"solver_order": 1}, {}),
    ("dpm", {"solver_order": 3, "lower_order_final": False}, {}),
    ("dpm", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, {}),
    ("dpm", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {}),
    ("flow", {}, {}),
    ("flow", {"stochastic_sampling": True}, {}),
]


def network(x):
    return torch.tanh(x), torch.tanh(0.5 * x.flip(0))


def scaled(scheduler, x, t):
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def advanced(scheduler, x, first, last, options, guided):
    for index in range(first, last):
        t = scheduler.timesteps[index]
        out, out_null = network(scaled(scheduler, x, t))
        guide = Guide(out_null, 3.0, 0.7) if guided else None
        x = scheduler.advance(out, t, x, guide=guide, **options)[0]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("kind", "config", "options"), CASES)
def test_planned_steps(kind, config, options, guided, dtype):
    """Two steps, six planned ones, and two more; against ten."""
    results = []
    for planned in (False, True):
        scheduler = PAIRS[kind][1](**config)
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(1)
        own = options | {"generator": generator}
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
        x = advanced(scheduler, x, 0, 2, own, guided)
        plan = scheduler.plan(2, 8, x, own) if planned else None
        if planned and plan is None:
            # Noise before a step of low precision is float32.
            assert kind == "euler" and dtype is torch.bfloat16 and options
        if plan is None:
            x = advanced(scheduler, x, 2, 8, own, guided)
        else:
            stepper = plan.bind(3.0 if guided else 1.0, 0.7 if guided else 0.0, generator)
            for place in range(6):
                out, out_null = network(x / plan.steps[place].scale if plan.scaled else x)
                x = stepper(place, x, out, out_null if guided else None)
            scheduler.planned_done(plan)
        x = advanced(scheduler, x, 8, 10, own, guided)
        counters = {name: getattr(scheduler, name, None) for name in ("_step_index", "lower_order_nums")}
        results.append((x, generator.get_state(), counters))
    (sample, state, counters), (other_sample, other_state, other_counters) = results
    assert torch.equal(sample, other_sample)
    assert torch.equal(state, other_state)
    assert counters == other_counters


def test_what_cannot_be_planned():
    x = torch.zeros(2, 3, 4, 4)
    refused = [
        ("ddim", {"prediction_type": "nothing"}, {}),
        ("ddim", {}, {"variance_noise": x}),
        ("ddim", {"thresholding": True, "sample_max_value": 0.5}, {}),
        ("ddpm", {"variance_type": "learned"}, {}),
        ("ddpm", {"variance_type": "fixed_large_log"}, {}),
        ("ddpm", {"prediction_type": "nothing"}, {}),
        ("euler", {"prediction_type": "nothing"}, {}),
        ("dpm", {"variance_type": "learned"}, {}),
        ("dpm", {"algorithm_type": "dpmsolver", "thresholding": True, "final_sigmas_type": "sigma_min"}, {}),
        ("dpm", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}, {}),
        ("flow", {}, {"per_token_timesteps": x}),
    ]
    for kind, config, options in refused:
        scheduler = PAIRS[kind][1](**config)
        scheduler.set_timesteps(10)
        assert scheduler.plan(0, 10, x, options) is None, (kind, config, options)


class Table(torch.Tensor):
    """A scheduler's table as if on a GPU: to bring it to the host would wait."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        assert name not in {"item", "tolist", "cpu", "numpy", "nonzero", "to", "double", "__bool__", "__index__"}, name
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(("kind", "config", "options"), [*CASES, ("ddpm", {"variance_type": "learned_range"}, {})])
def test_tables_are_read_at_the_first_step_alone(kind, config, options):
    """Wherever they lie: `add_noise` leaves alphas_cumprod on the device of its sample."""
    scheduler = PAIRS[kind][1](**config)
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(3)
    x = torch.ones(2, 3, 4, 4)
    for index, t in enumerate(scheduler.timesteps):
        out = torch.tanh(scaled(scheduler, x, t))
        out = torch.cat((out, 0.1 * out), dim=1) if "learned_range" in config.values() else out
        x = scheduler.step(out, t, x, generator=generator, **options).prev_sample
        if index == 0:
            for name in ("timesteps", "sigmas", "alphas_cumprod", "final_alpha_cumprod"):
                value = getattr(scheduler, name, None)
                if isinstance(value, torch.Tensor):
                    # The same object, guarded from now on: another one would be read, as it must.
                    value.__class__ = Table
    assert x.isfinite().all()
    with pytest.raises(AssertionError, match="to"):
        scheduler.timesteps.to("cpu")
