"""How good a shapes pipeline is: the share of questions right in each category, in plain diffusers."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.tasks.shapes.checker import reward
from pgraft_fast.tasks.shapes.prompts import CATEGORIES, Prompt, test_prompts

STEPS, GUIDANCE = 20, 2.0


def sample(
    pipe: Any, prompts: Sequence[Prompt], seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE,
    batch_size: int = 256, check: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """(B, 3, 32, 32) float32 in [-1, 1] drawn by the pipeline's own call; the flow without the zero tokens."""
    generator = torch.Generator().manual_seed(seed)
    more = {"max_sequence_length": 0} if hasattr(pipe, "transformer") else {}
    parts = []
    for start in range(0, len(prompts), batch_size):
        texts = [prompt.text for prompt in prompts[start : start + batch_size]]
        out = pipe(
            texts, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="pt", **more
        )
        parts.append(out.images.float().mul(2.0).sub(1.0))
        check()
    return torch.cat(parts)


def quality(
    pipe: Any, pictures: int = 85, seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Share of questions right on test prompts (JSON-ready): by category, their mean, and pictures with all right.

    pictures: of each category, its first prompts in turn.
    """
    chosen = []
    for category in CATEGORIES:
        known = [prompt for prompt in test_prompts() if prompt.category == category]
        chosen += [known[i % len(known)] for i in range(pictures)]
    began = time.perf_counter()
    samples = sample(pipe, chosen, seed, steps, guidance, check=check)
    seconds = time.perf_counter() - began
    shares = reward(samples, chosen)
    by_category = {
        category: float(shares[[i for i, p in enumerate(chosen) if p.category == category]].mean())
        for category in CATEGORIES
    }
    return {
        "questions_right": statistics.fmean(by_category.values()),
        "all_right": float((shares == 1.0).float().mean()),
        "by_category": by_category,
        "steps": steps,
        "guidance": guidance,
        "pictures": len(chosen),
        "seconds_per_256": 256.0 * seconds / len(chosen),
    }
