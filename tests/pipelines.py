"""Diffusers' pipelines at some ten thousand weights, built from configs: nothing is downloaded."""

from __future__ import annotations

import string

import diffusers
import transformers
from diffusers import DiffusionPipeline

from pgraft_fast_benchmarks.models import (
    SD_BETAS,
    WIDTH,
    clip_tokenizer,
    louder,
    seeded,
    stable_diffusion,
    tiny_clip,
    tiny_unet,
    tiny_vae,
)

NAMES = ("ddpm", "ddim", "sd", "sdxl", "sd3", "flux", "pixart", "sana")

_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def build(name: str, *, seed: int = 0, **options) -> DiffusionPipeline:
    """The pipeline `name`, one of NAMES, with random weights: float32, CPU, in eval mode, without a progress bar.

    seed: of the weights; the caller's generator is left as it was. options: size="bench" of "sd" has a UNet of
    0.8 M weights; guidance_embeds=False of "flux" is its model without an embedded guidance scale (as schnell).
    Latents are 8 x 8 with 4 channels, images 16 x 16; in "sana" 32 x 32; "ddpm" and "ddim" draw 8 x 8 pixels.
    """
    return seeded(lambda: _BUILDERS[name](**options), seed)


def call_arguments(name: str) -> dict:
    """The least that pipe(**call_arguments(name), num_inference_steps=..., generator=...) needs, images as arrays."""
    if name in {"ddpm", "ddim"}:
        return {"output_type": "np"}
    arguments = {"prompt": "a red cube", "output_type": "np"}
    if name in {"flux", "pixart", "sana"}:
        # Their default sizes are the real models'; Sana's sides are multiples of 32.
        side = 32 if name == "sana" else 16
        arguments |= {"height": side, "width": side}
    if name in {"sd3", "flux", "pixart", "sana"}:
        arguments["max_sequence_length"] = 64
    if name in {"pixart", "sana"}:
        # Cleaning needs beautifulsoup4; binning knows only the real models' sizes.
        arguments |= {"clean_caption": False, "use_resolution_binning": False}
    if name == "sana":
        # Some thousand letters before the prompt, a token each here.
        arguments["complex_human_instruction"] = None
    return arguments


def _unet_2d() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def _t5() -> tuple[transformers.T5EncoderModel, transformers.T5TokenizerFast]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in "▁" + _CHARACTERS)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config), tokenizer


def _gemma() -> tuple[transformers.Gemma2Model, transformers.GemmaTokenizerFast]:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_CHARACTERS]
    tokenizer = transformers.GemmaTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return louder(transformers.Gemma2Model(config), 3.0), tokenizer


def _ddpm() -> diffusers.DDPMPipeline:
    return diffusers.DDPMPipeline(_unet_2d(), diffusers.DDPMScheduler())


def _ddim() -> diffusers.DDIMPipeline:
    return diffusers.DDIMPipeline(_unet_2d(), diffusers.DDIMScheduler())


def _sdxl() -> diffusers.StableDiffusionXLPipeline:
    tokenizer = clip_tokenizer()
    unet = tiny_unet(
        (8, 16),
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=tiny_clip(tokenizer),
        text_encoder_2=tiny_clip(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **SD_BETAS),
        add_watermarker=False,
    )


def _sd3() -> diffusers.StableDiffusion3Pipeline:
    tokenizer = clip_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_clip(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=tiny_clip(tokenizer, projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(guidance_embeds: bool = True) -> diffusers.FluxPipeline:
    tokenizer = clip_tokenizer()
    text_encoder_2, tokenizer_2 = _t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    shifting = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {}
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shifting),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=louder(transformer, 1.5),
    )


def _pixart() -> diffusers.PixArtAlphaPipeline:
    text_encoder, tokenizer = _t5()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        # The only size at which the model is told the picture's; latents of other sizes are taken.
        sample_size=128,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny_vae(),
        transformer=louder(transformer, 1.5),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _sana() -> diffusers.SanaPipeline:
    text_encoder, tokenizer = _gemma()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
    )


_BUILDERS = dict(zip(NAMES, (_ddpm, _ddim, stable_diffusion, _sdxl, _sd3, _flux, _pixart, _sana), strict=True))
