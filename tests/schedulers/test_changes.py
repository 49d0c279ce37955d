"""Tables that are edited or replaced in mid-run, odd timesteps, mixed gradients: what a kept table could miss."""

import pytest
import torch
from schedulers.twins import KINDS, PAIRS, apart, largest

from pgraft_fast.errors import InputError
from pgraft_fast.ops import use_backend

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Of diffusers' own NumPy calls.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

SHAPE = (2, 3, 4, 4)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
OUT = torch.tanh(X.flip(0))


def step(scheduler, t, x=X, out=OUT, **options):
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, t)
    options.setdefault("generator", torch.Generator().manual_seed(4))
    return scheduler.step(out, t, x, **options, return_dict=False)


def on_both(kind, use, config=(), steps=8, rounding=2e-5):
    """use(scheduler) with diffusers' class and ours: tensors that agree, or an error of each. Returns ours."""
    results = []
    for cls in PAIRS[kind]:
        scheduler = cls(**dict(config))
        if steps:
            scheduler.set_timesteps(steps)
        try:
            results.append(use(scheduler))
        except Exception as error:
            results.append(error)
    theirs, mine = results
    if isinstance(theirs, Exception):
        assert isinstance(mine, Exception)
        return mine
    assert not isinstance(mine, Exception), mine
    for a, b in zip(mine, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert apart(a, b) <= rounding * max(largest(X), largest(b))
    return mine


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
    # One step of the thousand: diffusers' float32 coefficients are off by more than the usual tolerance.
    mine, exact = (cls() for cls in reversed(PAIRS["ddpm"]))
    exact.alphas_cumprod = exact.alphas_cumprod.double()
    assert apart(step(mine, 7)[0], step(exact, 7)[0]) <= 1e-6
    for kind in KINDS:
        on_both(kind, lambda scheduler: step(scheduler, scheduler.timesteps[400]), {"num_train_timesteps": 500}, 0)

    def past(scheduler):
        last = scheduler.timesteps[-1]
        scheduler.set_begin_index(7)
        return step(scheduler, last) + step(scheduler, last)

    for kind in SIGMA_KINDS:
        assert isinstance(on_both(kind, past), IndexError)
    assert isinstance(on_both("dpm", past, {"solver_order": 1}), IndexError)


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
    config = {"variance_type": "fixed_large_log", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    on_both(
        "ddpm", lambda scheduler: step(scheduler, scheduler.timesteps[-1]), config | {"timestep_spacing": "leading"}
    )
    config["prediction_type"] = "v_prediction"
    on_both("ddpm", lambda scheduler: step(scheduler, scheduler.timesteps[0]), config, steps=1)


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
