"""What a user set or replaced in a pipeline acts in every step, before and after `accelerate`."""

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import another, cached, call, off, taken_over
from pipelines import build
from repeats import repeats

from pgraft_fast import accelerate, restore, schedulers

LIMIT = 2e-5


def configured(**values):
    return lambda scheduler: scheduler.register_to_config(**values)


def scaled(name, factor):
    def change(scheduler):
        setattr(scheduler, name, getattr(scheduler, name) * factor)

    return change


CHANGES = [
    ("sd", configured(prediction_type="v_prediction")),
    ("sd", configured(timestep_spacing="trailing")),
    ("sd", configured(steps_offset=0)),
    ("sd", configured(clip_sample=True)),
    ("sd", scaled("alphas_cumprod", 0.97)),
    ("sd", scaled("final_alpha_cumprod", 1.0005)),
    ("sdxl", configured(use_karras_sigmas=True)),
    ("sdxl", configured(prediction_type="v_prediction")),
    ("sdxl", configured(timestep_spacing="linspace")),
    ("sdxl", scaled("alphas_cumprod", 0.97)),
    ("sd3", configured(stochastic_sampling=True)),
    ("sd3", lambda scheduler: scheduler.set_shift(7.0)),
    ("sd3", configured(use_karras_sigmas=True)),
    ("pixart", configured(algorithm_type="sde-dpmsolver++")),
    ("pixart", configured(solver_type="heun")),
    ("pixart", configured(prediction_type="v_prediction")),
    ("ddpm", configured(variance_type="fixed_large")),
    ("ddpm", scaled("one", 0.99995)),
    ("ddpm", configured(clip_sample=False)),
    ("ddim", configured(clip_sample=False)),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_scheduler_as_it_stands(name, change):
    plain = another(name)
    unchanged = call(plain, name)
    change(plain.scheduler)
    want = call(plain, name)
    assert np.abs(want.picture - unchanged.picture).max() > 10 * LIMIT
    before, after, own = another(name), another(name), another(name)
    change(before.scheduler)
    accelerate(before)
    scheduler = own.scheduler
    accelerate(own), accelerate(after)
    call(after, name), call(own, name)
    # Through the pipeline, and by whoever holds the scheduler from before.
    change(after.scheduler), change(scheduler)
    for pipe in (before, after, own):
        for _ in range(2):
            assert off(call(pipe, name), want) < LIMIT
    restore(own)
    assert own.scheduler is scheduler and off(call(own, name), want) == 0.0


def test_what_the_pipeline_corrects_itself():
    """An old scheduler file has neither steps_offset nor clip_sample: the pipeline sets both after loading it."""
    parts = build("sd").components
    old = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with pytest.warns(FutureWarning, match="steps_offset"):
        pipe = diffusers.StableDiffusionPipeline(**parts | {"scheduler": old}, requires_safety_checker=False)
    assert pipe.scheduler.config.steps_offset == 1 and not pipe.scheduler.config.clip_sample
    pipe.set_progress_bar_config(disable=True)
    want = call(pipe, "sd")
    accelerate(pipe)
    for _ in range(2):
        assert off(call(pipe, "sd"), want) < LIMIT and taken_over(pipe)


def louder(original, seen):
    """The step, with a state that is moved a little afterwards."""

    def step(self, model_output, timestep, sample, *args, **kwargs):
        seen.append(1)
        done = original(self, model_output, timestep, sample, *args, **kwargs)
        return (
            (done[0] + 0.05, *done[1:]) if isinstance(done, tuple) else type(done)(prev_sample=done.prev_sample + 0.05)
        )

    return step


WAYS = ["instance", "before", "class", "class below", "subclass"]
# Every way, and every pipeline.
REPLACED = [
    *(("sd", way) for way in WAYS), ("sdxl", "instance"), ("sd3", "class below"), ("pixart", "subclass"),
    ("ddpm", "before"),
]  # fmt: skip
OTHERS = [(name, way) for name in ("sdxl", "sd3", "pixart", "ddpm") for way in WAYS if (name, way) not in REPLACED]


@pytest.mark.parametrize(("name", "way"), [*REPLACED, *repeats(*OTHERS)])
def test_a_replaced_step_makes_every_step(name, way, monkeypatch):
    plain, pipe, seen = another(name), another(name), []
    original = type(plain.scheduler)
    monkeypatch.setattr(original, "step", louder(original.step, []))
    want = call(plain, name)
    monkeypatch.undo()
    assert off(call(cached(name), name), want) > 1e-3
    fast = getattr(schedulers, f"Fast{original.__name__}")
    if way == "subclass":
        mine = type("Mine", (fast,), {"step": louder(fast.step, seen)})
        pipe.scheduler = mine.from_config(pipe.scheduler.config)
    if way == "before":
        pipe.scheduler.step = louder(original.step, seen).__get__(pipe.scheduler)
    accelerate(pipe)
    if way in ("class", "class below"):
        cls = fast if way == "class" else original
        monkeypatch.setattr(cls, "step", louder(cls.step, seen))
    if way == "instance":
        pipe.scheduler.step = louder(fast.step, seen).__get__(pipe.scheduler)
    for count in (4, 8):
        assert off(call(pipe, name), want) < LIMIT
        assert len(seen) == count
    assert not taken_over(pipe)


@pytest.mark.parametrize(("name", "method"), [("sdxl", "scale_model_input"), ("sd", "scale_model_input")])
def test_a_replaced_model_input(name, method):
    plain, pipe, want = another(name), accelerate(another(name)), None
    call(pipe, name)
    for pipeline in (plain, pipe):
        own, calls = getattr(pipeline.scheduler, method), []

        def replaced(sample, timestep, own=own, calls=calls):
            calls.append(1)
            return own(sample, timestep) * 1.1

        setattr(pipeline.scheduler, method, replaced)
        got = call(pipeline, name)
        assert len(calls) == 4
        want = want or got
    assert off(got, want) < LIMIT and off(call(cached(name), name), want) > 1e-3


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("DDIMScheduler", "_get_variance", {"eta": 1.0}),
        ("DDPMScheduler", "_get_variance", {}),
        ("DPMSolverMultistepScheduler", "convert_model_output", {}),
        ("DPMSolverMultistepScheduler", "dpm_solver_first_order_update", {}),
    ],
)
@pytest.mark.parametrize("where", ["instance", "subclass", "class"])
def test_a_replaced_part_of_a_step(kind, method, options, where, monkeypatch):
    original, fast = getattr(diffusers, kind), getattr(schedulers, f"Fast{kind}")
    function = getattr(original, method)

    def halved(self, *args, **kwargs):
        return 0.5 * function(self, *args, **kwargs)

    def stepped(scheduler):
        scheduler.set_timesteps(5)
        x = torch.linspace(-1.0, 1.0, 32).view(2, 4, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, generator=torch.Generator().manual_seed(1), **options)[0]
        return x

    with monkeypatch.context() as patched:
        patched.setattr(original, method, halved)
        want = stepped(original())
        if where == "class":
            got = stepped(fast())
    if where == "instance":
        scheduler = fast()
        setattr(scheduler, method, halved.__get__(scheduler))
        got = stepped(scheduler)
    elif where == "subclass":
        got = stepped(type("Mine", (fast,), {method: halved})())
    assert torch.equal(got, want) and (stepped(fast()) - want).abs().max() > 1e-3


def test_a_subclass_keeps_its_own_timesteps():
    class Mine(schedulers.FastDDIMScheduler):
        def set_timesteps(self, num_inference_steps, device=None):
            super().set_timesteps(num_inference_steps, device)
            self.timesteps = self.timesteps.flip(0)

    mine, plain = Mine(), diffusers.DDIMScheduler()
    mine.set_timesteps(4), plain.set_timesteps(4)
    assert torch.equal(mine.timesteps, plain.timesteps.flip(0))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sd", "hook"), ("sd", "forward"), ("sd", "class"), ("flux", "hook"), ("ddim", "forward"),
        *repeats(("flux", "forward"), ("flux", "class"), ("ddim", "hook"), ("ddim", "class")),
    ],
)  # fmt: skip
def test_kept_model_inputs_stay_as_they_were(name, where, monkeypatch):
    def watched(pipe):
        """The model inputs of a call, kept as they come, and copies of them."""
        denoiser, kept, copies = getattr(pipe, "unet", None) or pipe.transformer, [], []
        first = denoiser.x_embedder if name == "flux" else denoiser.conv_in
        own = denoiser.forward

        def keep(x):
            kept.append(x), copies.append(x.clone())

        def forward(*args, **kwargs):
            keep(args[0] if args else kwargs["hidden_states"])
            return own(*args, **kwargs)

        with monkeypatch.context() as patched:
            if where == "hook":
                handle = first.register_forward_pre_hook(lambda module, args: keep(args[0]))
            elif where == "forward":
                patched.setattr(denoiser, "forward", forward)
            else:
                patched.setattr(type(denoiser), "forward", lambda self, *args, **kwargs: forward(*args, **kwargs))
            call(pipe, name, num_inference_steps=6)
            if where == "hook":
                handle.remove()
        return kept, copies

    pipe = build(name)
    want, _ = watched(pipe)
    accelerate(pipe)
    for _ in range(2):
        kept, copies = watched(pipe)
        assert len(kept) == len(want) == 6 and len({x.data_ptr() for x in kept}) == 6
        for x, copy, right in zip(kept, copies, want, strict=True):
            assert torch.equal(x, copy)
            torch.testing.assert_close(x, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "flux", *repeats("sd3")])
def test_gradients_through_the_call(name):
    """Below the decorator that turns gradients off."""

    def gradient(pipe):
        size = (1, 16, 16) if name == "flux" else (1, 4, 8, 8)
        latents = torch.randn(size, generator=torch.Generator().manual_seed(3)).requires_grad_()
        out = type(pipe).__call__.__wrapped__(
            pipe, "a cube", latents=latents, num_inference_steps=3, output_type="latent", height=16, width=16
        )[0]  # fmt: skip
        out.square().sum().backward()
        return latents.grad

    pipe = build(name)
    want = gradient(pipe)
    accelerate(pipe)
    call(pipe, name)
    for _ in range(2):
        torch.testing.assert_close(gradient(pipe), want, rtol=1e-4, atol=1e-6)
    # A pipeline of a user's that leaves gradients on.
    with torch.enable_grad():
        assert np.isfinite(call(pipe, name).picture).all()
