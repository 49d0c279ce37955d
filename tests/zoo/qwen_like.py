"""Transformers led by a language model's or by another single encoder's states."""

from __future__ import annotations

from typing import Any

import diffusers

from pgraft_fast_benchmarks.models import WIDTH, louder, tiny_vae

from .encoders import QwenProcessor, gemma2, glm, qwen3, qwen_vl
from .parts import PROMPT, flow, lively, picture


def _qwen_parts(channels: int = 8, halvings: int = 1, blocks: int = 1) -> dict[str, Any]:
    """channels and blocks: of each level of the autoencoder. halvings: of a picture's sides."""
    text_encoder, tokenizer = qwen_vl()
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=channels,
        z_dim=4,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=blocks,
        temperal_downsample=[False] * halvings,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return {
        "scheduler": flow(),
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": lively(transformer, 1.2),
    }


def _qwen_image() -> diffusers.QwenImagePipeline:
    return diffusers.QwenImagePipeline(**_qwen_parts())


def _qwen_image_edit() -> diffusers.QwenImageEditPipeline:
    """It makes a megapixel of every picture: an autoencoder with next to no work for a pixel, and 8 x 8 tokens."""
    parts = _qwen_parts(channels=4, halvings=6, blocks=0)
    return diffusers.QwenImageEditPipeline(**parts, processor=QwenProcessor(parts["tokenizer"]))


def _z_image() -> diffusers.ZImagePipeline:
    text_encoder, tokenizer = qwen3()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text_encoder.model,
        tokenizer=tokenizer,
        transformer=lively(transformer),
    )


def _lumina2() -> diffusers.Lumina2Pipeline:
    text_encoder, tokenizer = gemma2()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=WIDTH,
    )
    lively(transformer)
    # Its times are from 0 to 1, and most of their sines and cosines next to constant.
    louder(transformer.time_caption_embed.timestep_embedder.linear_1, 8.0)
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(shift=6.0),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


def _cogview4() -> diffusers.CogView4Pipeline:
    text_encoder, tokenizer = glm()
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=8,
    )
    scheduler = flow(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny_vae(),
        transformer=lively(transformer),
        scheduler=scheduler,
    )


BUILDERS = {
    "qwen_image": _qwen_image,
    "qwen_image_edit": _qwen_image_edit,
    "z_image": _z_image,
    "lumina2": _lumina2,
    "cogview4": _cogview4,
}

_SMALL = PROMPT | {"height": 16, "width": 16, "max_sequence_length": 32}
ARGUMENTS: dict[str, dict[str, Any]] = {
    # Guided only with a negative prompt.
    "qwen_image": _SMALL | {"negative_prompt": ""},
    "qwen_image_edit": _SMALL | {"negative_prompt": "", "height": 256, "width": 256, "image": picture()},
    "z_image": _SMALL,
    # Its latents are an eighth of the pixels whatever the autoencoder; the system's prompt is longer than the rest.
    "lumina2": _SMALL | {"height": 64, "width": 64, "system_prompt": ""},
    "cogview4": _SMALL,
}
