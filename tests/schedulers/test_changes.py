"""Tables edited or replaced in mid-run, given noise, mixed gradients: what a kept table or a fused step could miss."""

import pytest
import torch
from schedulers.twins import KINDS, OUT, PAIRS, X, apart, on_both, step

from pgraft_fast.errors import InputError
from pgraft_fast.ops import use_backend

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Of diffusers' own NumPy calls.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


def third(scheduler):
    return step(scheduler, scheduler.timesteps[2])


def changed(change):
    """A step, the change, and the next step."""

    def use(scheduler):
        step(scheduler, scheduler.timesteps[3])
        change(scheduler)
        return step(scheduler, scheduler.timesteps[4])

    return use


def edit(name, index):
    return lambda scheduler: getattr(scheduler, name)[index].mul_(0.9)


def replaced(name):
    return lambda scheduler: setattr(scheduler, name, getattr(scheduler, name) * 0.9)


SIGMA_KINDS = ("euler", "dpm", "flow")


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_changed_in_mid_run(kind):
    name = "sigmas" if kind in SIGMA_KINDS else "alphas_cumprod"
    before = on_both(kind, changed(lambda scheduler: None))
    for change in (edit(name, slice(None)), replaced(name)):
        after = on_both(kind, changed(change))
        assert apart(after[0], before[0]) > 1e-3
    with torch.inference_mode():
        on_both(kind, changed(lambda scheduler: None))


def test_the_level_after_the_last_step_is_replaced():
    def use(scheduler):
        step(scheduler, 125)
        scheduler.final_alpha_cumprod = torch.tensor(0.9999)
        return step(scheduler, 0, eta=0.0)

    on_both("ddim", use)


def test_timesteps_are_replaced_or_edited():
    def shorter(scheduler):
        scheduler.timesteps = scheduler.timesteps[2:]
        return step(scheduler, scheduler.timesteps[1])

    def edited(scheduler):
        step(scheduler, scheduler.timesteps[0])
        scheduler.timesteps[4] = 490
        return step(scheduler, scheduler.timesteps[4])

    for kind in ("ddim", "ddpm", "dpm"):
        on_both(kind, shorter)
    for kind in ("ddim", "ddpm"):
        on_both(kind, edited)


def test_the_prediction_type_is_switched():
    def use(scheduler):
        before = step(scheduler, scheduler.timesteps[3])
        scheduler.register_to_config(prediction_type="v_prediction")
        after = step(scheduler, scheduler.timesteps[4])
        assert apart(before[0], after[0]) > 1e-2
        scheduler.config.prediction_type = "sample"
        return step(scheduler, scheduler.timesteps[5])

    for kind in ("ddim", "ddpm", "euler", "dpm"):
        on_both(kind, use)


def test_prediction_types_that_a_scheduler_does_not_have():
    for kind in ("ddim", "ddpm", "euler"):
        for prediction in ("flow_prediction", "nothing"):
            assert isinstance(on_both(kind, third, {"prediction_type": prediction}), ValueError)
    config = {"prediction_type": "flow_prediction", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    assert isinstance(on_both("dpm", third, config), ValueError)


def test_a_variance_that_is_the_root_of_a_negative_number():
    """Not at the last step, which draws no noise, nor where beta is 1."""
    theirs, ours = (cls(variance_type="fixed_large_log") for cls in PAIRS["ddpm"])
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    assert step(theirs, theirs.timesteps[2])[0].isnan().all()
    with pytest.raises(InputError, match="variance_type='fixed_large_log' gives NaN"):
        step(ours, ours.timesteps[2])
    config = {"variance_type": "fixed_large_log", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    on_both("ddpm", lambda scheduler: step(scheduler, scheduler.timesteps[-1]), config)
    config["timestep_spacing"] = "trailing"
    on_both("ddpm", lambda scheduler: step(scheduler, scheduler.timesteps[0]), config, steps=1)


def test_negative_eta_adds_no_noise():
    on_both("ddim", lambda scheduler: step(scheduler, 500, eta=-0.5))


@pytest.mark.parametrize("noise", [X[:1], X.double(), X.bfloat16(), X.transpose(2, 3)])
def test_noise_that_is_given(noise):
    # diffusers multiplies in the dtype of the noise.
    rounding = 4e-3 if noise.dtype is torch.bfloat16 else 2e-5
    options = {"variance_noise": noise, "generator": None}
    on_both("ddim", lambda scheduler: step(scheduler, 500, eta=0.5, **options), rounding=rounding)
    sde = {"algorithm_type": "sde-dpmsolver++"}
    on_both("dpm", lambda scheduler: step(scheduler, scheduler.timesteps[2], **options), sde)


def test_noise_beside_a_generator():
    both = {"variance_noise": X, "generator": torch.Generator()}
    assert isinstance(on_both("ddim", lambda scheduler: step(scheduler, 500, eta=0.5, **both)), ValueError)
    on_both("ddim", lambda scheduler: step(scheduler, 500, eta=0.0, **both))


def test_a_gradient_through_noise_or_earlier_steps():
    wanted = X.clone().requires_grad_()
    for kind, config, options in (("ddim", {}, {"eta": 0.5}), ("dpm", {"algorithm_type": "sde-dpmsolver++"}, {})):
        grads = []
        for cls in PAIRS[kind]:
            scheduler = cls(**config)
            scheduler.set_timesteps(8)
            x = step(scheduler, scheduler.timesteps[3], variance_noise=wanted, generator=None, **options)[0]
            grads.append(torch.autograd.grad(x.square().sum(), wanted)[0])
        torch.testing.assert_close(*grads)

    grads = []
    for cls in PAIRS["dpm"]:
        scheduler = cls()
        scheduler.set_timesteps(8)
        step(scheduler, scheduler.timesteps[0], x=wanted)
        # The second step's own tensors want no gradient, the x_0 before does.
        x = step(scheduler, scheduler.timesteps[1])[0]
        grads.append(torch.autograd.grad(x.square().sum(), wanted)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_stays_in_its_sample(kind, bad):
    x = X.clone()
    x[1, 0, 2, 1] = bad
    # A quantile of NaN is the reference's alone.
    for config, backend in (({}, None), ({"thresholding": True}, "reference")):
        if config and kind in ("euler", "flow"):
            continue
        finite = []
        for cls in PAIRS[kind]:
            scheduler = cls(**config)
            scheduler.set_timesteps(8)
            with use_backend(backend):
                finite.append(step(scheduler, scheduler.timesteps[2], x=x)[0].isfinite())
        theirs, mine = finite
        assert mine[0].all() and not (mine & ~theirs).any()


@pytest.mark.parametrize("kind", SIGMA_KINDS)
def test_noise_is_added_where_the_run_stands(kind):
    """Inpainting: before the first step at the begin index, after it at the next level, whatever timestep is given."""

    def use(scheduler):
        scheduler.set_begin_index(3)
        times = scheduler.timesteps[3:4].expand(2)

        def noised():
            if kind == "flow":
                return scheduler.scale_noise(X, times, OUT)
            return scheduler.add_noise(X, OUT, times)

        states = [noised()]
        for t in scheduler.timesteps[3:6]:
            states += [step(scheduler, t)[0], noised()]
        assert apart(states[2], states[0]) > 1e-2
        return states

    on_both(kind, use)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_gives_the_same(kind):
    def use(scheduler):
        with use_backend("reference"):
            return [step(scheduler, t)[0] for t in scheduler.timesteps]

    on_both(kind, use)
