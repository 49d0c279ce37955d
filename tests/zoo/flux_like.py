"""Flux and what came after it: a text and an image stream."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from pipelines import _flux as flux

from pgraft_fast_benchmarks.models import WIDTH, tiny_vae

from .encoders import clip_tokenizer, llama, mistral, qwen3, t5, tiny_clip, umt5
from .parts import PROMPT, flow, lively, mask, picture


def _no_quant_vae(**more: Any) -> diffusers.AutoencoderKL:
    """As Flux's."""
    return tiny_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, **more)


def _flux_transformer(channels: int) -> diffusers.FluxTransformer2DModel:
    return lively(
        diffusers.FluxTransformer2DModel(
            in_channels=channels,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    )


def _fill() -> diffusers.FluxFillPipeline:
    """Reads a patch's latents, 16, the masked picture's, 16, and its mask: 4 x 4 pixels."""
    parts = flux().components | {"transformer": _flux_transformer(16 + 16 + 16)}
    return diffusers.FluxFillPipeline(**_known(diffusers.FluxFillPipeline, parts))


def _kontext() -> diffusers.FluxKontextPipeline:
    """The picture's tokens stand behind the latents'."""
    return diffusers.FluxKontextPipeline(**flux().components | {"transformer": _flux_transformer(16)})


def _known(cls: type[diffusers.DiffusionPipeline], parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that a class has."""
    expected, optional = cls._get_signature_keys(cls)
    return {name: part for name, part in parts.items() if name in {*expected, *optional}}


def _flux2_transformer(layers: int, **more: Any) -> diffusers.Flux2Transformer2DModel:
    return lively(
        diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=layers * WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            **more,
        ),
        1.2,
    )


def _flux2_vae() -> diffusers.AutoencoderKLFlux2:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _flux2() -> diffusers.Flux2Pipeline:
    text_encoder, tokenizer = mistral()
    return diffusers.Flux2Pipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=_flux2_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=_flux2_transformer(2),
    )


def _flux2_klein() -> diffusers.Flux2KleinPipeline:
    text_encoder, tokenizer = qwen3()
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=_flux2_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=_flux2_transformer(2, guidance_embeds=False),
    )


def _chroma() -> diffusers.ChromaPipeline:
    text_encoder, tokenizer = t5()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(),
        vae=_no_quant_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=lively(transformer),
    )


def _aura_flow() -> diffusers.AuraFlowPipeline:
    text_encoder, tokenizer = umt5()
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=WIDTH,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny_vae(scaling_factor=0.13025),
        transformer=lively(transformer, 1.2),
        scheduler=flow(shift=1.73),
    )


def _bria() -> diffusers.BriaPipeline:
    text_encoder, tokenizer = t5()
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 8, 8],
    )
    return diffusers.BriaPipeline(
        transformer=lively(transformer, 1.2),
        scheduler=flow(),
        vae=tiny_vae(scaling_factor=0.13025, shift_factor=0.0, force_upcast=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


def _hidream() -> diffusers.HiDreamImagePipeline:
    clip = clip_tokenizer()
    text_encoder_3, tokenizer_3 = t5()
    text_encoder_4, tokenizer_4 = llama(transformers.LlamaForCausalLM)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(0, 1),
    )
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=tiny_clip(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=tiny_clip(clip, projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
        text_encoder_4=text_encoder_4,
        tokenizer_4=tokenizer_4,
        transformer=lively(transformer, 0.7),
    )
    # It draws as many latents as a picture of this size has, whatever size is asked for.
    pipe.default_sample_size = 8
    return pipe


BUILDERS = {
    "flux_fill": _fill,
    "flux_kontext": _kontext,
    "flux2": _flux2,
    "flux2_klein": _flux2_klein,
    "chroma": _chroma,
    "aura_flow": _aura_flow,
    "bria": _bria,
    "hidream": _hidream,
}

_SMALL = PROMPT | {"height": 16, "width": 16, "max_sequence_length": 32}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "flux_fill": _SMALL | {"image": picture(), "mask_image": mask()},
    # Without these two it draws at a megapixel, and resizes the picture to one.
    "flux_kontext": _SMALL | {"image": picture(), "max_area": 16 * 16, "_auto_resize": False},
    # The real encoders' layers are the 10th and others.
    "flux2": _SMALL | {"text_encoder_out_layers": (1, 2)},
    "flux2_klein": _SMALL | {"text_encoder_out_layers": (1, 2)},
    "chroma": _SMALL,
    "aura_flow": _SMALL,
    "bria": _SMALL,
    "hidream": _SMALL,
}
