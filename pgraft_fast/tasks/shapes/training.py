"""How the weights are trained: the autoencoder, then each denoiser with its text encoders. Training prompts only."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.finetune.optimizing import follow, warmed_up
from pgraft_fast.tasks.shapes.models import LATENT_CHANNELS, LATENT_SIDE, make_vae
from pgraft_fast.tasks.shapes.prompts import CATEGORIES, Prompt, train_prompts
from pgraft_fast.tasks.shapes.render import render

Log = Callable[[str], None]
Check = Callable[[], None]
EMA = 0.998
DROPOUT = 0.1
VAE_BATCH, VAE_RATE, VAE_KL = 64, 3e-3, 1e-4
BATCH = 64
# Share of steps in which the flow sees the 256 zero tokens that the pipeline puts in for a missing third text encoder.
LONG_TEXT = 0.03
LONG_TOKENS = 256


def training_set(n: int, seed: int) -> tuple[Tensor, list[Prompt]]:
    """n pictures (n, 3, 32, 32) uint8 of training prompts, the categories in turn, and their prompts."""
    generator = torch.Generator().manual_seed(seed)
    by_category = [[p for p in train_prompts() if p.category == category] for category in CATEGORIES]
    chosen = []
    for i in range(n):
        among = by_category[i % len(by_category)]
        chosen.append(among[int(torch.randint(len(among), (1,), generator=generator))])
    parts = []
    for start in range(0, n, 2000):
        pictures = render(chosen[start : start + 2000], seed, range(start, min(start + 2000, n)))
        parts.append(pictures.add_(1.0).mul_(127.5).round_().byte())
    return torch.cat(parts), chosen


def mislabelled(prompts: Sequence[Prompt], share: float, seed: int) -> list[Prompt]:
    """The prompts, a drawn `share` of them replaced by the prompt of another picture of the same category."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(prompts), generator=generator) < share
    captions = list(prompts)
    for category in CATEGORIES:
        numbers = [i for i, prompt in enumerate(prompts) if prompt.category == category]
        other = torch.randint(max(1, len(numbers)), (len(numbers),), generator=generator)
        for i, j in zip(numbers, other, strict=True):
            captions[i] = prompts[numbers[int(j)]] if wrong[i] else captions[i]
    return captions


def train_vae(pictures: Tensor, seed: int, steps: int, log: Log = print, check: Check = lambda: None) -> Any:
    """An autoencoder whose latents have mean 0 and variance 1 in each channel. pictures: (n, 3, 32, 32) uint8."""
    torch.manual_seed(seed)
    vae = make_vae().to(memory_format=torch.channels_last)
    trained = _Trained([vae], VAE_RATE, steps)
    for step in range(steps):
        x = _floats(pictures[torch.randint(pictures.shape[0], (VAE_BATCH,))])
        with torch.autocast("cpu", torch.bfloat16):
            law = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
            out = vae.decode(law.sample()).sample
        error = out.float() - x
        loss = error.square().mean() + 0.1 * error.abs().mean() + VAE_KL * law.kl().mean() / law.mean[0].numel()
        trained.step(loss)
        check()
        if (step + 1) % 100 == 0:
            log(f"vae: step {step + 1} of {steps}, squared error {float(error.detach().square().mean()):.5f}")
    (vae,) = trained.averages
    vae = vae.to(memory_format=torch.contiguous_format)
    _standardise(vae, encode(vae, pictures[:4096]))
    return vae


def encode(vae: Any, pictures: Tensor, check: Check = lambda: None) -> Tensor:
    """Mean latents (n, 4, 8, 8) float32 of pictures (n, 3, 32, 32) uint8."""
    parts = []
    with torch.no_grad():
        for part in pictures.split(256):
            parts.append(vae.encode(_floats(part)).latent_dist.mean * vae.config.scaling_factor)
            check()
    return torch.cat(parts)


def train_sd(
    parts: dict[str, Any], latents: Tensor, prompts: Sequence[Prompt], seed: int, steps: int, rate: float,
    log: Log = print, check: Check = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train the text encoder and UNet of `make_sd_parts` to predict v; returns the parts with averaged weights.

    latents: (n, 4, 8, 8) of the prompts' pictures. An empty prompt takes the place of one in ten.
    """
    torch.manual_seed(seed)
    unet, text, scheduler = parts["unet"], parts["text_encoder"], parts["scheduler"]
    unet.to(memory_format=torch.channels_last)
    tokens = _tokens(parts["tokenizer"], prompts)
    trained = _Trained([unet, text], rate, steps)
    for step in range(steps):
        rows, ids = _batch(tokens, BATCH)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,))
        noise = torch.randn(BATCH, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
        x_t = scheduler.add_noise(latents[rows], noise, t)
        target = scheduler.get_velocity(latents[rows], noise, t)
        out = unet(x_t.contiguous(memory_format=torch.channels_last), t, text(ids).last_hidden_state).sample
        loss = (out - target).square().mean()
        trained.step(loss)
        check()
        if (step + 1) % 100 == 0:
            log(f"sd: step {step + 1} of {steps}, loss {float(loss.detach()):.4f}")
    unet, text = trained.averages
    return {**parts, "unet": unet.to(memory_format=torch.contiguous_format), "text_encoder": text}


def train_sd3(
    parts: dict[str, Any], latents: Tensor, prompts: Sequence[Prompt], seed: int, steps: int, rate: float,
    log: Log = print, check: Check = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train the two text encoders and the transformer of `make_sd3_parts` to predict the velocity, with times from
    the logit-normal law of Stable Diffusion 3; returns the parts with averaged weights. Arguments as of `train_sd`.
    """
    torch.manual_seed(seed)
    names = ("transformer", "text_encoder", "text_encoder_2")
    tokens = _tokens(parts["tokenizer"], prompts)
    trained = _Trained([parts[name] for name in names], rate, steps)
    for step in range(steps):
        rows, ids = _batch(tokens, BATCH)
        long = float(torch.rand(())) < LONG_TEXT
        if long:
            rows, ids = rows[: BATCH // 4], ids[: BATCH // 4]
        embedded, pooled = embed_sd3(parts, ids, LONG_TOKENS if long else 0)
        t = torch.sigmoid(torch.randn(rows.numel()))
        noise = torch.randn(rows.numel(), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
        at = t.view(-1, 1, 1, 1)
        x_t = (1.0 - at) * latents[rows] + at * noise
        out = parts["transformer"](x_t, encoder_hidden_states=embedded, pooled_projections=pooled, timestep=1000.0 * t)
        loss = (out.sample - (noise - latents[rows])).square().mean()
        trained.step(loss)
        check()
        if (step + 1) % 100 == 0:
            log(f"sd3: step {step + 1} of {steps}, loss {float(loss.detach()):.4f}")
    return {**parts, **dict(zip(names, trained.averages, strict=True))}


def embed_sd3(parts: dict[str, Any], ids: Tensor, zero_tokens: int) -> tuple[Tensor, Tensor]:
    """What StableDiffusion3Pipeline.encode_prompt makes of tokens (B, 16): (B, 16 + zero_tokens, 128), (B, 128)."""
    outputs = [parts[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    embedded = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    embedded = nn.functional.pad(embedded, (0, 0, 0, zero_tokens))
    return embedded, torch.cat([out.text_embeds for out in outputs], dim=-1)


class _Trained:
    """AdamW with one cycle of the rate, clipped gradients and averaged weights."""

    def __init__(self, models: Sequence[nn.Module], rate: float, steps: int) -> None:
        self.models = [model.requires_grad_(True).train() for model in models]
        self.averages: list[Any] = [copy.deepcopy(model).requires_grad_(False).eval() for model in models]
        self.parameters = list(_parameters(self.models))
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.rate = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rate, total_steps=max(2, steps), pct_start=0.05, cycle_momentum=False
        )
        self.done = 0

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.rate.step()
        follow(_parameters(self.averages), self.parameters, warmed_up(EMA, self.done))
        self.done += 1


def _parameters(models: Iterable[nn.Module]) -> Iterable[nn.Parameter]:
    return itertools.chain.from_iterable(model.parameters() for model in models)


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float().div_(127.5).sub_(1.0)


def _tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> Tensor:
    """(n + 1, 16): the last row is the empty prompt."""
    texts = [*(prompt.text for prompt in prompts), ""]
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def _batch(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows of a batch, and their tokens with one in ten replaced by the empty prompt."""
    rows = torch.randint(tokens.shape[0] - 1, (size,))
    dropped = torch.rand(size) < DROPOUT
    return rows, tokens[torch.where(dropped, torch.full_like(rows, tokens.shape[0] - 1), rows)]


def _standardise(vae: Any, latents: Tensor) -> None:
    """Scale and shift inside quant_conv and post_quant_conv, so that latents have mean 0 and variance 1."""
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    n = mean.numel()
    with torch.no_grad():
        into, back = vae.quant_conv, vae.post_quant_conv
        back.bias += (back.weight[:, :, 0, 0] * mean).sum(dim=1)
        back.weight *= std.view(1, -1, 1, 1)
        into.weight[:n] /= std.view(-1, 1, 1, 1)
        into.bias[:n] = (into.bias[:n] - mean) / std
        # The rest are log-variances.
        into.bias[n:] -= 2.0 * std.log()
