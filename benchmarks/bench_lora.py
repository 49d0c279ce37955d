"""A call of a pipeline's network in sampling: untouched, with a LoRA beside its weights, and with it added to them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast_benchmarks.gates import near
from pgraft_fast_benchmarks.harness import Case, Provider, Settings

_RANK = 32
_PROMPTS = ["a red square", "two blue circles"]
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj"]


def cases(settings: Settings) -> Iterator[Case]:
    """Stable Diffusion's shapes network with a LoRA on nearly all of its layers."""
    shape = (2 if settings.small else 32, 4, 8, 8)
    yield Case("lora", f"rank {_RANK}", shape, "float32", None, partial(_providers, shape), optional=True)


def _providers(shape: tuple[int, ...], settings: Settings) -> Sequence[Provider]:
    from pgraft_fast.finetune import TrainSettings
    from pgraft_fast.pipelines.calls import Calls
    from pgraft_fast.pipelines.driven import Driven
    from pgraft_fast.pipelines.facts import facts_of
    from pgraft_fast.pipelines.learners import LoraLearner
    from pgraft_fast.pipelines.loras import Lora
    from pgraft_fast.tasks.shapes.pipeline import shapes_pipeline

    pipe = shapes_pipeline().to(settings.device)
    model = Driven.of(facts_of(Calls(pipe, _PROMPTS, {}, guidance=1.0)))
    model.prepare(range(len(_PROMPTS)))
    learner: Any = LoraLearner(model, TrainSettings(), Lora(rank=_RANK, targets=_TARGETS), seed=0)
    with torch.no_grad():
        # A new LoRA is 0.
        for name, weight in learner.ema.net.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(settings.device)
    rows = torch.arange(shape[0], device=settings.device)
    times, prompts = (rows + 1.0) / (shape[0] + 1.0), rows % len(_PROMPTS)
    beside = _call(learner.ema.like(samples=False), x, times, prompts)
    added = _call(learner.ema, x, times, prompts)
    return [
        # A GPU's convolutions round to TF32, in other places once the weights are sums.
        Provider("ours", added, lambda: near(added(), beside(), 1e-5 if settings.device.type == "cpu" else 2e-3)),
        Provider("beside", beside, lambda: None),
        Provider("base", _call(learner.reference, x, times, prompts), lambda: None),
    ]


def _call(model: Any, *inputs: Tensor) -> Callable[[], list[Tensor]]:
    @torch.no_grad()
    def call() -> list[Tensor]:
        return [model(*inputs)]

    return call
