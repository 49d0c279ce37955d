"""Transformers with cross attention to a text, or with a class in its place."""

from __future__ import annotations

from typing import Any

import diffusers
from pipelines import _pixart as pixart

from pgraft_fast_benchmarks.models import WIDTH, tiny_vae

from .encoders import bert, t5
from .parts import PROMPT, lively


def _pixart_sigma() -> diffusers.PixArtSigmaPipeline:
    parts = pixart().components
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=8,
    )
    return diffusers.PixArtSigmaPipeline(**parts | {"transformer": lively(transformer)})


def _hunyuan_dit() -> diffusers.HunyuanDiTPipeline:
    text_encoder, tokenizer = bert()
    text_encoder_2, tokenizer_2 = t5()
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return diffusers.HunyuanDiTPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=lively(transformer),
        scheduler=diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.018, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )


def _dit() -> diffusers.DiTPipeline:
    """Ten classes; the eleventh is none of them."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer=lively(transformer), vae=tiny_vae(), scheduler=scheduler)


BUILDERS = {"pixart_sigma": _pixart_sigma, "hunyuan_dit": _hunyuan_dit, "dit": _dit}

_SMALL = PROMPT | {"height": 16, "width": 16, "use_resolution_binning": False}
ARGUMENTS: dict[str, dict[str, Any]] = {
    # Cleaning needs beautifulsoup4.
    "pixart_sigma": _SMALL | {"clean_caption": False, "max_sequence_length": 32},
    "hunyuan_dit": _SMALL,
    "dit": {"class_labels": [1]},
}
