"""A round of P-GRAFT with a LoRA on a UNet of Stable Diffusion 2.1's size, random weights in bfloat16, on a GPU.

Rewards are means of the final latents: neither side decodes.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.finetune import FinetuneSettings, SampleSettings, SelectSettings, TrainSettings
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.sampling.timing import timed
from pgraft_fast.tasks.pipeline import pipeline_task
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.our_round import OurRound, parts_of
from pgraft_fast_benchmarks.plain_pipeline_round import PlainPipelineRound, with_lora
from pgraft_fast_benchmarks.sampling_gpu import release

PEERS = ("plain", "plain compile")
_PROMPTS = ["a red cube", "two dogs", "a house by the sea", "an old map"]
_CANDIDATES, _CUT, _GUIDANCE, _RANK, _BATCH = 4, 0.25, 7.5, 16, 16
_TRAIN_STEPS, _TRAIN_BATCH = 2, 8
STEPS, SAMPLES = 25, len(_PROMPTS) * _CANDIDATES


def cases(settings: Settings) -> Iterator[Case]:
    """One."""
    steps = settings.by_size(STEPS, STEPS, 4)
    yield Case(
        "round", "sd21", (SAMPLES, 4, 64, 64), "bfloat16", None, partial(providers, steps),
        columns={"batch": SAMPLES, "steps": steps}, budget=settings.by_size(6.0, 4.0, 0.0), least=2, optional=True,
    )  # fmt: skip


def providers(steps: int, settings: Settings, **smaller: Any) -> Sequence[Provider]:
    """A script's round and ours, each as it is and compiled; ours as graphs, too. A short run compiles nothing."""
    release()
    pipe = pipeline_of(settings.device, **smaller)
    config = FinetuneSettings(
        sample=SampleSettings(
            prompts=len(_PROMPTS), candidates=_CANDIDATES, steps=steps, solver="ddpm", batch_size=_BATCH
        ),
        select=SelectSettings(rule="best_of_n"),
        train=TrainSettings(cut=_CUT, steps=_TRAIN_STEPS, batch_size=_TRAIN_BATCH, learning_rate=1e-4, ema=0.9),
    )
    # Ours has its LoRA in the pipeline's own UNet; the script's are on copies of it.
    modes = ["compile"] * (not settings.short)
    plain = {f"plain {mode}".strip(): _plain(with_lora(pipe, _RANK), steps, mode) for mode in ("", *modes)}
    calls = Calls(pipe, _PROMPTS, {}, guidance=_GUIDANCE, steps=steps)
    task, _ = pipeline_task(facts_of(calls), _PROMPTS, _PROMPTS, Lora(rank=_RANK), 0)
    assert task.learner is not None
    learner = task.learner(config.train)
    with torch.no_grad():
        # As after a step: a new LoRA is 0.
        for weight in learner.weights()["ema"].values():
            weight.add_(1e-3 * torch.randn_like(weight))
    graphs = settings.device.type == "cuda"
    ways = ["eager", *(["graph"] * graphs), *(f"{mode}_sampling" for mode in modes)]
    ways += [f"{mode}_graph" for mode in modes] * graphs
    ours = {
        "ours" if way == "eager" else f"ours {way.removesuffix('_sampling').replace('_', ' ')}": OurRound(
            task, config, settings.device, way, _score, learner
        )
        for way in ways
    }
    rounds: dict[str, Any] = {**plain, **ours}

    def gate(name: str) -> str | None:
        rewards = rounds[name].run()
        return None if bool(rewards.isfinite().all()) else "rewards are not finite"

    def provider(name: str) -> Provider:
        return Provider(
            name, partial(timed, rounds[name].run, settings.device), partial(gate, name), own_clock=True,
            optional="compile" in name, backend=settings.backend if name in ours else None,
            columns=lambda: parts_of(rounds[name].seconds), per_hour={"samples_per_hour": SAMPLES},
        )  # fmt: skip

    return [provider(name) for name in rounds]


def pipeline_of(device: torch.device, **smaller: Any) -> Any:
    """Stable Diffusion with a UNet of 2.1's size, and a text encoder and a decoder that cost nothing beside it."""
    from diffusers import StableDiffusionPipeline

    from pgraft_fast_benchmarks.models import LARGE, clip_tokenizer, seeded, tiny_clip, tiny_vae

    large, tokenizer = LARGE["sd21"], clip_tokenizer()
    width = smaller.get("cross_attention_dim", large.config["cross_attention_dim"])
    unet = large.drawn(device, **smaller)
    pipe = seeded(
        lambda: StableDiffusionPipeline(
            vae=tiny_vae(), text_encoder=tiny_clip(tokenizer, width=width), tokenizer=tokenizer, unet=unet,
            scheduler=large.scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )
    )  # fmt: skip
    return pipe.to(device, torch.bfloat16)


def _plain(pipe: Any, steps: int, mode: str) -> PlainPipelineRound:
    return PlainPipelineRound(
        pipe, _PROMPTS, _mean, _CANDIDATES, steps, _CUT, _GUIDANCE, _BATCH, _TRAIN_STEPS, _TRAIN_BATCH, 1e-4,
        compiled=mode == "compile",
    )  # fmt: skip


def _mean(states: Tensor) -> Tensor:
    return states.float().flatten(1).mean(dim=1)


def _score(samples: Tensor, prompts: Any, sample_ids: Any) -> Tensor:
    return _mean(samples)
