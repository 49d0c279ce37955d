"""Pipelines that draw videos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
from diffusers.pipelines.wan import pipeline_wan_i2v

from pgraft_fast_benchmarks.models import WIDTH

from .encoders import clip_tokenizer, llama, t5, tiny_clip, umt5
from .parts import PROMPT, flow, lively, picture


def _wan_vae() -> diffusers.AutoencoderKLWan:
    """A quarter of the sides and of the time."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        scale_factor_spatial=4,
    )


def _wan_transformer(channels: int = 16, **more: Any) -> diffusers.WanTransformer3DModel:
    return lively(
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=channels,
            out_channels=16,
            text_dim=WIDTH,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            **more,
        )
    )


def _wan() -> diffusers.WanPipeline:
    text_encoder, tokenizer = umt5()
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_wan_vae(),
        transformer=_wan_transformer(),
        scheduler=flow(shift=7.0),
    )


def _wan22() -> diffusers.WanPipeline:
    """Two experts: the first one above the boundary, the second one below it."""
    text_encoder, tokenizer = umt5()
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_wan_vae(),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        scheduler=flow(shift=3.0),
        boundary_ratio=0.875,
    )


def _wan_i2v() -> diffusers.WanImageToVideoPipeline:
    """Without an image encoder, as 2.2's: the picture stands in more channels alone."""
    # It cleans prompts with ftfy whether that is installed or not.
    vars(pipeline_wan_i2v).setdefault("ftfy", SimpleNamespace(fix_text=str))
    text_encoder, tokenizer = umt5()
    return diffusers.WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_wan_vae(),
        transformer=_wan_transformer(36),
        scheduler=flow(shift=7.0),
    )


def _ltx() -> diffusers.LTXPipeline:
    text_encoder, tokenizer = t5()
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return diffusers.LTXPipeline(
        scheduler=flow(), vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=lively(transformer)
    )


def _cogvideox() -> diffusers.CogVideoXPipeline:
    text_encoder, tokenizer = t5()
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=32,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=lively(transformer),
        scheduler=diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0, prediction_type="v_prediction"),
    )


def _hunyuan_video() -> diffusers.HunyuanVideoPipeline:
    text_encoder, tokenizer = llama()
    clip = clip_tokenizer()
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=4,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=lively(transformer),
        vae=vae,
        scheduler=flow(shift=7.0),
        text_encoder_2=tiny_clip(clip),
        tokenizer_2=clip,
    )


def _mochi() -> diffusers.MochiPipeline:
    text_encoder, tokenizer = t5()
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        max_sequence_length=32,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        scheduler=flow(), vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=lively(transformer)
    )


BUILDERS = {
    "wan": _wan,
    "wan22": _wan22,
    "wan_i2v": _wan_i2v,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "hunyuan_video": _hunyuan_video,
    "mochi": _mochi,
}

_SHORT = PROMPT | {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 32}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "wan": _SHORT,
    "wan22": _SHORT,
    "wan_i2v": _SHORT | {"image": picture()},
    # Sides are multiples of 32.
    "ltx": _SHORT | {"height": 32, "width": 32},
    "cogvideox": _SHORT,
    # The real template is longer than all the rest.
    "hunyuan_video": _SHORT | {"prompt_template": {"template": "{}", "crop_start": 0}},
    # Its frames are one and a multiple of six.
    "mochi": _SHORT | {"height": 32, "width": 32, "num_frames": 7},
}
