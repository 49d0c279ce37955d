"""Pipelines that draw sounds."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from pgraft_fast_benchmarks.models import SD_BETAS, WIDTH, louder

from .encoders import clap, gpt2, t5
from .parts import PROMPT, lively


def _stable_audio() -> diffusers.StableAudioPipeline:
    """Two channels, 16 latents of four values each, 0.25 s.

    The steps are those of its scheduler without noise: the published one, CosineDPMSolverMultistepScheduler, needs
    torchsde.
    """
    text_encoder, tokenizer = t5()
    tokenizer.model_max_length = 32
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=WIDTH,
        time_proj_dim=16,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    lively(transformer, 0.8)
    # The time stands in one token of seventeen, where it is added to the length's states.
    louder(transformer.timestep_proj, 2.0)
    for block in transformer.transformer_blocks:
        louder(block.attn1, 2.0)
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=512,
    )
    projection = diffusers.StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=32
    )
    return diffusers.StableAudioPipeline(
        vae=vae,
        text_encoder=text_encoder,
        projection_model=lively(projection),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
    )


def _audioldm2() -> diffusers.AudioLDM2Pipeline:
    """Spectrograms of 8 bands."""
    text_encoder, tokenizer = clap()
    text_encoder_2, tokenizer_2 = t5()
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(WIDTH, WIDTH),
    )
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    projection = diffusers.AudioLDM2ProjectionModel(
        text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=WIDTH
    )
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )
    return diffusers.AudioLDM2Pipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        projection_model=lively(projection),
        language_model=gpt2(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        feature_extractor=transformers.ClapFeatureExtractor(),
        unet=lively(unet),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SD_BETAS),
        vocoder=lively(vocoder, 1.5),
    )


BUILDERS = {"stable_audio": _stable_audio, "audioldm2": _audioldm2}

ARGUMENTS: dict[str, dict[str, Any]] = {"stable_audio": dict(PROMPT), "audioldm2": dict(PROMPT)}
