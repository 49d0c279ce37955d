"""A pipeline's denoiser as a model of prompt numbers: the same answers as inside the pipeline."""

import copy

import pytest
import torch
from denoisers import NAMES, TEXTS, denoiser
from fake_cuda import NoTransfers, on_fake_cuda, to_fake_cuda
from pipelines import build, call_arguments
from torch._subclasses.fake_tensor import FakeTensorMode

from pgraft_fast.errors import InputError
from pgraft_fast.sampling import Guided, rollout
from pgraft_fast.text_to_image import Decoder, PromptTable, kind_of
from pgraft_fast.text_to_image.kinds import latent_shape


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_inside_the_pipeline(name):
    """What the pipeline's own loop asks its denoiser, with guidance 1 or an embedded scale, and what it hears."""
    pipe = build(name)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    arguments = call_arguments(name) | {"prompt": TEXTS[1], "num_inference_steps": 4, "height": 16, "width": 16}
    scale = 3.5 if name == "flux" else 1.0
    heard = []
    net = kind_of(pipe).net(pipe)
    hook = net.register_forward_hook(lambda *args: heard.append(args[1:]), with_kwargs=True)
    pipe(**arguments, guidance_scale=scale, generator=torch.Generator().manual_seed(0))
    hook.remove()
    ours = denoiser(pipe, scale)
    for args, kwargs, out in heard:
        x = kwargs.get("hidden_states", args[0] if args else None)
        time = kwargs.get("timestep", args[1] if len(args) > 1 else None).reshape(-1)[:1].double()
        steps = pipe.scheduler.config.num_train_timesteps
        t = {"sd": (time + 1) / steps, "sdxl": (time + 1) / steps, "sd3": time / steps, "flux": time}[name]
        expected = out[0]
        if name == "flux":
            unpack = type(pipe)._unpack_latents
            x, expected = (unpack(value, 16, 16, pipe.vae_scale_factor) for value in (x, expected))
        answer = ours(x, t.float(), torch.tensor([1]))
        assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_and_rollouts(name):
    pipe = build(name)
    shape = latent_shape(pipe, 16, 16)
    plain, strong = denoiser(pipe), denoiser(pipe, 4.0)
    x, t, numbers = torch.randn(2, *shape), torch.tensor([0.9, 0.4]), torch.tensor([1, 0])
    if name == "flux":
        assert strong.calls_a_sample == 1 and not torch.equal(strong(x, t, numbers), plain(x, t, numbers))
    else:
        answer = strong(x, t, numbers)
        assert isinstance(answer, Guided) and strong.calls_a_sample == 2
        assert torch.allclose(answer.out, plain(x, t, numbers), atol=1e-5)
        assert torch.allclose(answer.out_null, plain(x, t, torch.tensor([2, 2])), atol=1e-5)
    schedule, parameterization = kind_of(pipe).schedule(pipe, 16, 16)
    found = rollout(
        strong, schedule, shape=shape, n=2, steps=3, parameterization=parameterization, condition=numbers, cuts=(0.25,),
        solver="ddpm" if name in ("sd", "sdxl") else "euler_sde",
    )  # fmt: skip
    assert torch.isfinite(found.x_0).all() and found.model_calls == 2 * 3 * strong.calls_a_sample
    pictures = Decoder(pipe.vae, 1)(found.x_0)
    assert pictures.shape == (2, 3, 16, 16) and float(pictures.abs().max()) <= 1.0
    assert torch.allclose(pictures, Decoder(pipe.vae, 8)(found.x_0), atol=1e-5)


def test_decoder_is_the_pipelines():
    pipe = build("sd3")
    latents = torch.randn(2, 4, 8, 8)
    wanted = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor)[0]
    assert torch.equal(Decoder(pipe.vae)(latents), wanted.clamp(-1.0, 1.0))


def test_prompts_are_encoded_once():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return {"rows": torch.tensor([[float(len(text))] for text in texts])}

    table = PromptTable(encode, ("a", "bbb", "cc"), "", torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match=r"prepare\(\) did not bring"):
        table.rows(torch.tensor([0]))
    table.prepare(torch.tensor([1, 1, 1]))
    assert asked == ["bbb", ""] and table.rows(torch.tensor([1, 3]))["rows"].flatten().tolist() == [3.0, 0.0]
    table.prepare(torch.tensor([2, 1]))
    assert asked == ["bbb", "", "cc"]
    assert table.rows(torch.tensor([2, 1, 3]))["rows"].flatten().tolist() == [2.0, 3.0, 0.0]
    assert copy.deepcopy(table) is table


def test_rows_stay_where_a_graph_reads_them():
    def encode(texts):
        return {"rows": torch.tensor([[float(len(text))] for text in texts])}

    table = PromptTable(encode, ("a", "bbb", "cc", "dddd"), "", torch.device("cpu"), torch.float32)
    table.prepare(torch.tensor([0, 1]))
    key, rows = table.graph_key, table._columns["rows"]
    for numbers, lengths in (([2], [2.0, 0.0]), ([3, 1], [4.0, 3.0, 0.0]), ([0, 2], [1.0, 2.0, 0.0])):
        table.prepare(torch.tensor(numbers))
        assert table.rows(torch.tensor([*numbers, 4]))["rows"].flatten().tolist() == lengths
        assert table.graph_key == key and table._columns["rows"] is rows
    with pytest.raises(InputError, match=r"prepare\(\) did not bring"):
        table.rows(torch.tensor([1]))
    # More rows than there is room for: the key is another one.
    table.prepare(torch.tensor([0, 1, 2]))
    assert table.graph_key != key
    assert table.rows(torch.tensor([0, 1, 2, 4]))["rows"].flatten().tolist() == [1.0, 3.0, 2.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_a_guided_call_copies_nothing_from_the_host(name):
    """On fake CUDA tensors. The network returns its input: diffusers' own do not run on these without CUDA."""
    pipe = build(name)
    model, shape = denoiser(pipe, guidance=3.0), latent_shape(pipe, 16, 16)
    model.net.forward = lambda *args, **kwargs: (args[0] if args else kwargs["hidden_states"],)
    with FakeTensorMode():
        to_fake_cuda(model)
        table = model.table
        table._device = torch.device("cuda", 0)
        table._place, table._null = on_fake_cuda(table._place), on_fake_cuda(table._null)
        for held in (table._columns, model._constants):
            held.update({column: on_fake_cuda(value) for column, value in held.items()})
        x, t, numbers = (
            torch.randn(2, *shape, device="cuda"),
            torch.rand(2, device="cuda"),
            torch.arange(2, device="cuda"),
        )
        with NoTransfers(), torch.no_grad():
            answer = model(x, t, numbers)
    out = answer.out if isinstance(answer, Guided) else answer
    assert out.shape == x.shape and out.device.type == "cuda"


def test_sdxl_leaves_its_null_prompt_at_zero():
    pipe = build("sdxl")
    kind = kind_of(pipe)
    for forced in (True, False):
        pipe.register_to_config(force_zeros_for_empty_prompt=forced)
        columns = kind.encode(pipe, [None, "", "a"], 64)
        assert bool((columns["encoder_hidden_states"][0] == 0).all()) is forced
        # An empty prompt that is given is a prompt.
        assert all(bool((columns["text_embeds"][row] != 0).any()) for row in (1, 2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"DDPMPipeline: cannot be fine-tuned here; known: StableDiffusionPipeline"):
        kind_of(build("ddpm"))
    with pytest.raises(InputError, match=r"height=17, width=16: both must be multiples of 2"):
        latent_shape(build("sd"), 17, 16)
