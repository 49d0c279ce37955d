"""The parts of the two pipelines, as diffusers and transformers have them, only small."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pgraft_fast.tasks.shapes.geometry import COLOURS, SHAPES, SIDE
from pgraft_fast.tasks.shapes.prompts import NUMBERS

LATENT_CHANNELS = 4
LATENT_SIDE = SIDE // 4
# The longest prompt has ten words; with both ends twelve tokens.
MAX_TOKENS = 16
_TEXT_WIDTH = 96
_FLOW_TEXT_WIDTH = 64
_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word of the grammar."""
    plurals = [f"{shape}s" for shape in SHAPES]
    joins = ["and", "left", "right", "of", "above", "below"]
    return sorted({*SHAPES, *plurals, *COLOURS, "small", "large", *NUMBERS, *joins})


def make_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer whose byte pairs merge each word of the grammar into one token; other words fall into letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        # From the end, so that a word and its plural share no step that could go the wrong way.
        while len(parts) > 1:
            merges[parts[-2], parts[-1]] = None
            parts[-2:] = [parts[-2] + parts[-1]]
            vocab.setdefault(parts[-1], len(vocab))
    for token in (_START, _END):
        vocab[token] = len(vocab)
    rules: Any = list(merges)
    return CLIPTokenizer(vocab=vocab, merges=rules, model_max_length=MAX_TOKENS)


def make_vae() -> Any:
    """An untrained AutoencoderKL: (B, 3, 32, 32) in [-1, 1] <-> latents (B, 4, 8, 8)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=True,
        # The recipe scales the latents inside the model.
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_sd_parts() -> dict[str, Any]:
    """text_encoder, unet (predicts v), scheduler and tokenizer of a StableDiffusionPipeline, untrained."""
    tokenizer = make_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer, _TEXT_WIDTH, 2)),
        "unet": UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=_TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
    }


def make_sd3_parts() -> dict[str, Any]:
    """Two text encoders, transformer, scheduler and tokenizers of a StableDiffusion3Pipeline, untrained; no third
    text encoder.
    """
    tokenizer = make_tokenizer()
    config = _text_config(tokenizer, _FLOW_TEXT_WIDTH, 2)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": make_tokenizer(),
        "text_encoder": CLIPTextModelWithProjection(config),
        "text_encoder_2": CLIPTextModelWithProjection(config),
        "transformer": SD3Transformer2DModel(
            sample_size=LATENT_SIDE,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=2 * _FLOW_TEXT_WIDTH,
            caption_projection_dim=128,
            pooled_projection_dim=2 * _FLOW_TEXT_WIDTH,
            pos_embed_max_size=LATENT_SIDE,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
    }
