"""What diffusers' own tests do with a pipeline, done with an accelerated one: the same pictures in every call."""

import copy
from functools import cache

import accelerate as offloading
import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import cached, call, off
from pipelines import build

from pgraft_fast import accelerate, restore

LIMIT = 1e-5
HALF = 0.05


def both(name):
    """The plain pipeline and an accelerated one that has understood its loop."""
    plain, fast = build(name), accelerate(build(name))
    call(fast, name)
    return plain, fast


# For calls that leave the pipelines as they are.
kept_both = cache(both)


def check(name, make, limit=LIMIT, calls=2, **more):
    """The same from both in every call. make(pipe): the arguments of one call, new each time."""
    plain, fast = kept_both(name)
    want = call(plain, name, **{**make(plain), **more})
    for _ in range(calls):
        assert off(call(fast, name, **{**make(fast), **more}), want) <= limit
    return want


def noise(name, rows=1, seed=7):
    size = {"flux": (16, 16), "sana": (4, 8, 8)}.get(name, (4, 8, 8))
    if name == "sana":
        size = (4, 32 // 4, 32 // 4)
    return torch.randn(rows, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["sdxl", "flux", "sd", "sd3", "pixart", "sana"])
def test_latents_given(name):
    latents = noise(name)
    check(name, lambda pipe: {"latents": latents.clone()})
    # They are the caller's, and stay as they are.
    _, fast = kept_both(name)
    kept = latents.clone()
    call(fast, name, latents=latents)
    assert torch.equal(latents, kept)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("sd", {"timesteps": [901, 600, 333, 50]}),
        ("sdxl", {"sigmas": [10.0, 3.0, 1.0, 0.1]}),
        ("pixart", {"sigmas": [10.0, 3.0, 1.0, 0.1]}),
        ("sdxl", {"timesteps": [901, 600, 333, 50]}),
        ("sd3", {"sigmas": [1.0, 0.7, 0.4, 0.2]}),
        ("flux", {"sigmas": [1.0, 0.7, 0.4, 0.2]}),
    ],
)
def test_timesteps_given(name, schedule):
    def make(pipe):
        if name in ("sd", "sdxl", "pixart") and "timesteps" in schedule:
            return {"timesteps": list(schedule["timesteps"])}
        return {key: list(values) for key, values in schedule.items()}

    try:
        call(cached(name), name, **make(None))
    except ValueError as error:
        # Some schedulers take none; the accelerated pipeline says the same.
        _, fast = kept_both(name)
        with pytest.raises(ValueError, match=str(error)[:20]):
            call(fast, name, **make(None))
        return
    check(name, make)


@pytest.mark.parametrize("name", ["sdxl", "flux", "sd", "sd3"])
def test_a_callback_that_changes_latents(name):
    def changed(pipe, step, timestep, values):
        return {"latents": values["latents"] * (0.0 if step == 1 else 1.0) + 0.1}

    want = check(name, lambda pipe: {"callback_on_step_end": changed})
    assert off(call(cached(name), name), want) > 1e-4


@pytest.mark.parametrize(
    ("name", "stop"),
    [("sd", 0), ("flux", 2), ("sd", 2), ("sdxl", 0), ("sdxl", 2), ("sd3", 0), ("sd3", 2), ("flux", 0)],
)
def test_an_interrupt_in_a_callback(name, stop):
    def interrupted(pipe, step, timestep, values):
        pipe._interrupt = step == stop
        return values

    want = check(name, lambda pipe: {"callback_on_step_end": interrupted, "output_type": "latent"})
    assert off(call(cached(name), name, output_type="latent"), want) > 1e-4


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_callback_that_ends_guidance(name):
    def ended(pipe, step, timestep, values):
        if step == 1:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
            for key in ("add_text_embeds", "add_time_ids"):
                if key in values:
                    values[key] = values[key].chunk(2)[-1]
        return values

    inputs = ["latents", "prompt_embeds"] + (["add_text_embeds", "add_time_ids"] if name == "sdxl" else [])
    check(name, lambda pipe: {"callback_on_step_end": ended, "callback_on_step_end_tensor_inputs": inputs})


def with_ip_adapter(pipe):
    """A random IP-adapter of one image token, through diffusers' own loader."""
    unet, generator = pipe.unet, torch.Generator().manual_seed(11)
    width, tokens, layers = unet.config.cross_attention_dim, 4, {}
    crossed = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(crossed):
        shape = (unet.get_submodule(name).to_k.out_features, width)
        for projection in ("to_k_ip", "to_v_ip"):
            # The odd numbers are those of the layers that see the prompt.
            layers[f"{2 * place + 1}.{projection}.weight"] = torch.randn(shape, generator=generator)
    image = {
        "proj.weight": torch.randn(width * tokens, 16, generator=generator),
        "proj.bias": torch.zeros(width * tokens),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": layers}])
    return pipe


@pytest.mark.parametrize(("name", "guidance"), [("sd", 6.0), ("sdxl", 1.0), ("sd", 1.0), ("sdxl", 6.0)])
def test_ip_adapters(name, guidance):
    embeds = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(2))
    image_embeds = torch.cat((torch.zeros_like(embeds), embeds)) if guidance > 1.0 else embeds
    plain, fast = (with_ip_adapter(build(name)) for _ in range(2))
    accelerate(fast)
    for scale in (1.0, 0.5):
        for pipe in (plain, fast):
            pipe.set_ip_adapter_scale(scale)
        want = call(plain, name, ip_adapter_image_embeds=[image_embeds], guidance_scale=guidance)
        for _ in range(2):
            got = call(fast, name, ip_adapter_image_embeds=[image_embeds], guidance_scale=guidance)
            assert off(got, want) <= LIMIT
    assert off(call(cached(name), name, guidance_scale=guidance), want) > 1e-4


class Counting(offloading.hooks.ModelHook):
    """An offloading hook that only counts what passes through it."""

    def __init__(self):
        self.before, self.after = 0, 0

    def pre_forward(self, module, *args, **kwargs):
        self.before += 1
        return args, kwargs

    def post_forward(self, module, output):
        self.after += 1
        return output


@pytest.mark.parametrize("name", ["sd", "sd3", "pixart", "ddim"])
def test_offload_hooks(name):
    plain, fast = both(name)
    hooks = []
    for pipe in (plain, fast):
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        hooks.append(Counting())
        offloading.hooks.add_hook_to_module(denoiser, hooks[-1])
    for count in (4, 8):
        assert off(call(fast, name), call(plain, name)) <= LIMIT
        assert [(hook.before, hook.after) for hook in hooks] == [(count, count)] * 2
    denoiser = getattr(fast, "unet", None) or fast.transformer
    offloading.hooks.remove_hook_from_module(denoiser)
    restore(fast)
    assert not hasattr(denoiser, "_hf_hook") and off(call(fast, name), call(cached(name), name)) == 0.0


@pytest.mark.parametrize("name", ["sd", "pixart", "ddpm", "ddim", "sdxl", "flux", "sana"])
def test_saved_reloaded_and_accelerated(name, tmp_path):
    plain, fast = kept_both(name)
    fast.save_pretrained(tmp_path)
    loaded = accelerate(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    want = call(plain, name)
    for _ in range(2):
        assert off(call(loaded, name), want) <= LIMIT


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sd", diffusers.StableDiffusionImg2ImgPipeline),
        ("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline),
        ("sd3", diffusers.StableDiffusion3Img2ImgPipeline),
    ],
)
def test_components_of_two_pipelines_shared(name, other):
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    def drawn(pipe):
        """A picture from the text, and one from a picture, in turns."""
        image = other.from_pipe(pipe)
        image.set_progress_bar_config(disable=True)
        pictures = []
        for _ in range(2):
            pictures.append(call(pipe, name).picture)
            generator = torch.Generator().manual_seed(0)
            out = image(
                "a cube", image=start, strength=0.6, num_inference_steps=6, generator=generator, output_type="np"
            )
            pictures.append(out.images)
        return pictures

    plain, fast = both(name)
    for got, want in zip(drawn(fast), drawn(plain), strict=True):
        assert np.abs(got - want).max() <= LIMIT


@pytest.mark.parametrize("name", ["sd", "flux", "sd3", "pixart"])
def test_dtypes_changed_between_calls(name):
    plain, fast = both(name)
    for dtype, limit in ((torch.bfloat16, HALF), (torch.float32, LIMIT), (torch.float16, HALF), (torch.float32, LIMIT)):
        if dtype is torch.float16 and name in ("flux", "pixart"):
            continue
        for pipe in (plain, fast):
            pipe.to(dtype=dtype)
        want = call(plain, name)
        for _ in range(2):
            got = call(fast, name)
            assert off(got, want) <= limit
            if dtype is torch.float32:
                # The weights went through 16 bits in both.
                assert np.isfinite(got.picture).all()


@pytest.mark.parametrize("name", ["sd3", "ddim", "sd", "sdxl", "flux", "pixart", "ddpm"])
def test_a_generator_a_sample(name):
    rows = {"batch_size": 2} if name in ("ddim", "ddpm") else {"prompt": ["a cube", "a ball"]}
    check(name, lambda pipe: {"seed": [3, 4], **rows})


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart"])
def test_embeddings_given(name):
    pipe = cached(name)
    if name == "pixart":
        text, mask, null, null_mask = pipe.encode_prompt("a ball", max_sequence_length=64)
        arguments = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": null,
                     "negative_prompt_attention_mask": null_mask, "prompt": None, "negative_prompt": None}  # fmt: skip
    elif name == "sd":
        text, null = pipe.encode_prompt("a ball", "cpu", 1, True)
        arguments = {"prompt_embeds": text, "negative_prompt_embeds": null, "prompt": None}
    else:
        three = {"prompt_3": None} if name == "sd3" else {}
        text, null, pooled, null_pooled = pipe.encode_prompt("a ball", prompt_2=None, **three)
        arguments = {"prompt_embeds": text, "negative_prompt_embeds": null, "pooled_prompt_embeds": pooled,
                     "negative_pooled_prompt_embeds": null_pooled, "prompt": None}  # fmt: skip
    want = check(name, lambda pipe: copy.copy(arguments))
    assert off(call(pipe, name), want) > 1e-4


@pytest.mark.parametrize("name", ["sd", "flux", "sdxl", "sd3"])
def test_other_sizes_in_turns(name):
    plain, fast = kept_both(name)
    for side in (16, 32, 16):
        assert off(*(call(pipe, name, height=side, width=32) for pipe in (fast, plain))) <= LIMIT


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sd", {"eta": 0.7}),
        ("ddim", {"eta": 0.7}),
        ("sd", {"guidance_rescale": 0.6}),
        ("sd", {"num_images_per_prompt": 2}),
        ("sdxl", {"denoising_end": 0.5}),
        ("sdxl", {"negative_prompt": "a ball", "guidance_scale": 3.0}),
        ("sd3", {"negative_prompt": "a ball", "guidance_scale": 1.0}),
        ("flux", {"guidance_scale": 1.5, "num_images_per_prompt": 2}),
        ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "a ball"}),
        ("sana", {"negative_prompt": "a ball"}),
    ],
)
def test_options_of_the_call(name, more):
    want = check(name, lambda pipe: dict(more))
    assert np.isfinite(want.picture).all()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_freeu_and_slicing_switched_between_calls(name):
    pipes = both(name)
    switches = [
        lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda pipe: pipe.disable_freeu(),
        lambda pipe: pipe.enable_attention_slicing(),
        lambda pipe: pipe.disable_attention_slicing(),
    ]
    for switch in switches:
        for pipe in pipes:
            switch(pipe)
        want, got = (call(pipe, name) for pipe in pipes)
        assert off(got, want) <= LIMIT
