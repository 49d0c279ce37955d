"""`accelerate` and `restore`: what they change in a pipeline and what they leave as it was."""

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import call, off, taken_over
from diffusers import StableDiffusionPipeline
from pipelines import NAMES, build, call_arguments
from repeats import repeats

from pgraft_fast import accelerate, restore, schedulers
from pgraft_fast.errors import InputError

LIMIT = 1e-4


def state_of(pipe):
    """What a user can see and touch, by identity."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    processors = {name: id(processor) for name, processor in getattr(denoiser, "attn_processors", {}).items()}
    return (
        type(pipe), pipe.scheduler, sorted(vars(pipe)), sorted(vars(denoiser)), "step" in vars(pipe.scheduler),
        denoiser.forward, pipe.scheduler.step, pipe.progress_bar, processors, str(pipe.config),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_restore_leaves_nothing(name):
    pipe = build(name)
    call(pipe, name)
    before = state_of(pipe)
    assert accelerate(pipe) is pipe
    for _ in range(2):
        call(pipe, name)
    assert restore(pipe) is pipe
    assert state_of(pipe) == before
    assert restore(pipe) is pipe and state_of(pipe) == before


def test_names_and_signatures():
    pipe = build("sd")
    cls, signature, documentation = type(pipe), inspect.signature(pipe.__call__), pipe.__call__.__doc__
    accelerate(pipe)
    assert type(pipe) is cls is StableDiffusionPipeline
    assert inspect.signature(pipe.__call__) == signature and pipe.__call__.__doc__ == documentation
    assert set(pipe.components) == set(build("sd").components)
    assert pipe.scheduler.config == build("sd").scheduler.config


def test_twice():
    pipe = build("sd")
    own, cls = pipe.scheduler, type(pipe)
    want = call(pipe, "sd")
    for _ in range(2):
        accelerate(pipe)
        for _ in range(2):
            assert off(call(pipe, "sd"), want) < LIMIT
    restore(pipe)
    assert type(pipe) is cls and pipe.scheduler is own
    restore(restore(pipe))
    assert off(call(pipe, "sd"), want) == 0.0


@pytest.mark.parametrize("name", ["sd", "pixart", *repeats("sdxl", "sana")])
def test_saved_as_plain_diffusers(name, tmp_path):
    pipe = build(name)
    want = call(pipe, name)
    pipe.save_pretrained(tmp_path / "plain")
    accelerate(pipe)
    call(pipe, name), call(pipe, name)
    pipe.save_pretrained(tmp_path / "fast")
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        plain, fast = (json.loads((tmp_path / kind / file).read_text()) for kind in ("plain", "fast"))
        assert plain == fast
    loaded = type(build(name)).from_pretrained(tmp_path / "fast")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler).__module__.startswith("diffusers.")
    assert off(call(loaded, name), want) < 1e-5
    accelerate(loaded)
    for _ in range(2):
        assert off(call(loaded, name), want) < LIMIT


def test_the_shift_set_by_hand_is_kept():
    pipe = build("sd3")
    pipe.scheduler.set_shift(6.0)
    want = call(pipe, "sd3")
    accelerate(pipe)
    assert pipe.scheduler.shift == 6.0 and off(call(pipe, "sd3"), want) < LIMIT


def test_another_scheduler_after_accelerate():
    pipe = accelerate(build("sd"))
    for _ in range(2):
        call(pipe, "sd")
    pipe.scheduler = own = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    got = [call(pipe, "sd") for _ in range(2)]
    pipe.scheduler = schedulers.FastEulerDiscreteScheduler.from_config(own.config)
    got += [call(pipe, "sd") for _ in range(2)]
    assert taken_over(pipe)
    restore(pipe)
    assert isinstance(pipe.scheduler, schedulers.FastEulerDiscreteScheduler)
    pipe.scheduler = own
    for result in got:
        assert off(result, call(pipe, "sd")) < LIMIT


def test_another_model_after_accelerate():
    pipe, other = build("sd"), build("sd", seed=1)
    want = call(other, "sd")
    other.text_encoder, other.vae = pipe.text_encoder, pipe.vae
    mixed = call(other, "sd")
    accelerate(pipe)
    for _ in range(2):
        call(pipe, "sd")
    own, pipe.unet = pipe.unet, other.unet
    for _ in range(2):
        assert off(call(pipe, "sd"), mixed) < LIMIT
    assert "forward" not in vars(own) and np.abs(mixed.picture - want.picture).max() > 1e-3


def test_weights_changed_in_place():
    pipe, want = build("sd"), []
    changed = build("sd")
    accelerate(pipe)
    for _ in range(3):
        want.append(call(changed, "sd"))
        assert off(call(pipe, "sd"), want[-1]) < LIMIT
        for model in (pipe.unet, changed.unet):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
    assert np.abs(want[0].picture - want[1].picture).max() > 1e-3


def test_moved_to_another_dtype():
    pipe, twin = accelerate(build("sd3")), build("sd3")
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        pipe.to("cpu", dtype), twin.to(dtype)
        limit = 0.05 if dtype is torch.bfloat16 else LIMIT
        for _ in range(2):
            got = call(pipe, "sd3", output_type="pt")
            assert off(got, call(twin, "sd3", output_type="pt")) < limit


@pytest.mark.parametrize(
    ("name", "calls_before"),
    [
        ("sd", 0), ("sd", 2), ("ddim", 2), ("flux", 0), ("pixart", 2),
        *repeats(("ddim", 0), ("flux", 2), ("pixart", 0)),
    ],
)  # fmt: skip
def test_an_error_in_mid_run(name, calls_before):
    pipe = build(name)
    want = call(pipe, name)
    accelerate(pipe)
    for _ in range(calls_before):
        call(pipe, name)
    before = state_of(pipe)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    layer = next(module for module in denoiser.modules() if isinstance(module, torch.nn.Linear))
    forward, made = layer.forward, []

    def failing(x):
        made.append(x)
        if len(made) == 3:
            raise RuntimeError("the third step fails")
        return forward(x)

    layer.forward = failing
    with pytest.raises(RuntimeError, match="the third step fails"):
        call(pipe, name)
    del layer.forward
    assert len(made) == 3 and state_of(pipe)[:8] == before[:8]
    for _ in range(2):
        assert off(call(pipe, name), want) < LIMIT


@pytest.mark.parametrize(("error", "taken"), [(KeyboardInterrupt, True), (RuntimeError, False)])
def test_an_error_while_a_call_is_rehearsed(error, taken):
    """After its first call of a kind, to see that nothing but the last state decides. An error there is no error."""
    pipe = build("sd")
    want = call(pipe, "sd")
    accelerate(pipe)
    before, decode, made = state_of(pipe), pipe.vae.decode, []

    def failing(*args, **kwargs):
        made.append(1)
        if len(made) == 2:
            raise error("in the second decoding")
        return decode(*args, **kwargs)

    pipe.vae.decode = failing
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            call(pipe, "sd")
    else:
        assert off(call(pipe, "sd"), want) < LIMIT
    del pipe.vae.decode
    assert len(made) == 2 and state_of(pipe)[:8] == before[:8]
    for _ in range(2):
        assert off(call(pipe, "sd"), want) < LIMIT
        assert taken_over(pipe) == taken


def test_a_rehearsal_leaves_generators_as_the_call_did():
    """The default one and the caller's; a second call of the same generators goes on with them."""
    plain, pipe = build("ddpm"), accelerate(build("ddpm"))
    outcomes = []
    for pipeline in (plain, pipe):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4)
        drawn = [
            pipeline(**call_arguments("ddpm"), num_inference_steps=3, generator=generator).images for _ in range(3)
        ]
        outcomes.append((drawn, generator.get_state(), torch.get_rng_state()))
    assert all(np.abs(a - b).max() < LIMIT for a, b in zip(outcomes[0][0], outcomes[1][0], strict=True))
    assert torch.equal(outcomes[0][1], outcomes[1][1]) and torch.equal(outcomes[0][2], outcomes[1][2])


def test_a_users_own_forward_and_progress_bar():
    """Attributes of the objects themselves, as hooks for offloading set them."""
    pipe = build("sd")
    calls, forward, bar = [], pipe.unet.forward, pipe.progress_bar

    def counted(*args, **kwargs):
        calls.append("model")
        return forward(*args, **kwargs)

    def shown(*args, **kwargs):
        calls.append("bar")
        return bar(*args, **kwargs)

    pipe.unet.forward, pipe.progress_bar = counted, shown
    want = call(pipe, "sd")
    plain, calls[:] = list(calls), []
    accelerate(pipe)
    for _ in range(2):
        assert off(call(pipe, "sd"), want) < LIMIT
        assert calls == plain == ["bar", *["model"] * 4]
        calls.clear()
    assert pipe.unet.forward is counted and pipe.progress_bar is shown


@pytest.mark.parametrize("name", ["sd", "ddim"])
def test_hooks_of_accelerate(name):
    hooks = pytest.importorskip("accelerate.hooks")

    class Counted(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe = build(name)
    want = call(pipe, name)
    hook = Counted()
    hooks.add_hook_to_module(pipe.unet, hook)
    accelerate(pipe)
    for count in (1, 2):
        assert off(call(pipe, name), want) < LIMIT
        assert hook.calls == 4 * count
    restore(pipe)
    hooks.remove_hook_from_module(pipe.unet)
    # The hook leaves the model's own forward in the place of the class's.
    assert pipe.unet.forward.__func__ is type(pipe.unet).forward
    assert off(call(pipe, name), want) == 0.0


def test_hooks_renewed_within_a_call():
    """As offloading does at the end of each call."""
    hooks = pytest.importorskip("accelerate.hooks")
    pipe = build("sd")
    want = call(pipe, "sd")

    def renewed():
        hooks.remove_hook_from_module(pipe.unet)
        hooks.add_hook_to_module(pipe.unet, hooks.ModelHook())

    pipe.maybe_free_model_hooks = renewed
    renewed()
    accelerate(pipe)
    for _ in range(3):
        assert off(call(pipe, "sd"), want) < LIMIT
        # The hook's function, not one that was there before it.
        assert pipe.unet.forward.func.__name__ == "new_forward"
        assert pipe.unet._old_forward.__func__ is type(pipe.unet).forward
    assert taken_over(pipe)


def test_bad_input():
    pipe = build("sd")
    with pytest.raises(InputError, match=r"needs a diffusers pipeline with a scheduler, got object$"):
        accelerate(object())
    with pytest.raises(InputError, match=r"mode='fast' is unknown; known: auto, eager, compile, "):
        accelerate(pipe, mode="fast")
    with pytest.raises(InputError, match="attention='flash' is unknown; known: keep, sdpa, xformers, auto"):
        accelerate(pipe, attention="flash")
    assert type(pipe) is StableDiffusionPipeline and type(pipe.scheduler) is diffusers.DDIMScheduler
    accelerate(pipe)
    with pytest.raises(InputError, match="mode="):
        accelerate(pipe, mode="fast")
    assert taken_over(pipe) is False and isinstance(pipe.scheduler, schedulers.FastDDIMScheduler)
    assert not hasattr(restore(object()), "scheduler")


@pytest.mark.parametrize("mode", ["step_graph", "trajectory_graph", "compile_trajectory_graph"])
def test_graphs_need_a_gpu(mode):
    pipe = build("sd")
    want = call(pipe, "sd")
    accelerate(pipe, mode=mode)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"^mode='{mode}' needs CUDA tensors, the pipeline is on cpu$"):
            pipe(**call_arguments("sd"), num_inference_steps=3)
    restore(pipe)
    assert off(call(pipe, "sd"), want) == 0.0
