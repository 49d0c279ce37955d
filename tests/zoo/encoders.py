"""Stand-ins for tokenizers and text encoders: a token for a byte or a letter, two layers, random weights."""

from __future__ import annotations

import string
from typing import Any

import torch
import transformers
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from pipelines import _t5 as t5
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pgraft_fast_benchmarks.models import WIDTH, clip_tokenizer, tiny_clip

from .parts import lively

__all__ = [
    "QwenProcessor", "bert", "chatglm", "clap", "clip_tokenizer", "gemma2", "glm", "gpt2", "llama", "mistral", "qwen3",
    "qwen_vl", "t5", "tiny_clip", "umt5",
]  # fmt: skip

_CHARACTERS = string.ascii_letters + string.digits + string.punctuation
_PAD = "<|image_pad|>"
_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", _PAD, "<|video_pad|>",
)  # fmt: skip
# Of Qwen-Image's templates: it drops as many tokens as its own tokenizer, with one for a word, makes of their start.
_WORDS = (
    "system user Describe the image by detailing color shape size texture quantity text spatial relationships of "
    "objects and background key features input then explain how 's instruction should alter or modify Generate new "
    "that meets requirements while maintaining consistency with original where appropriate"
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
# Mistral's messages are lists of parts; the system's, the same for every prompt, is left out.
_CHAT_OF_PARTS = (
    "{% for message in messages if message.role == 'user' %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endfor %}<|im_end|>"
)
_SHAPE = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def qwen_tokenizer(chat: str = _CHAT) -> transformers.Qwen2Tokenizer:
    """A token for a byte, but one for a word of the templates."""
    words = _WORDS.split()
    tokens = [*sorted(ByteLevel.alphabet()), *_SPECIAL]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        additional_special_tokens=list(_SPECIAL[1:]),
        model_max_length=2048,
    )
    tokenizer.add_tokens([*words, *(" " + word for word in words), " (", "),", " a"])
    tokenizer.chat_template = chat
    return tokenizer


def qwen3() -> tuple[transformers.Qwen3ForCausalLM, transformers.Qwen2Tokenizer]:
    """Of Z-Image and Flux 2 Klein."""
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **_SHAPE)
    return lively(transformers.Qwen3ForCausalLM(config)), tokenizer


def mistral() -> tuple[transformers.MistralModel, transformers.Qwen2Tokenizer]:
    """Of Flux 2, in place of Mistral 3 with its eyes."""
    tokenizer = qwen_tokenizer(_CHAT_OF_PARTS)
    config = transformers.MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **_SHAPE)
    return lively(transformers.MistralModel(config)), tokenizer


def qwen_vl() -> tuple[transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2Tokenizer]:
    """Of Qwen-Image: patches of 14 pixels, four of them a token."""
    tokenizer = qwen_tokenizer()
    number = dict(zip(_SPECIAL, tokenizer.convert_tokens_to_ids(list(_SPECIAL)), strict=True))
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **_SHAPE,
            "num_key_value_heads": 1,
            "vocab_size": len(tokenizer),
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "bos_token_id": None,
            "eos_token_id": number["<|im_end|>"],
        },
        vision_config={
            "depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=number[_PAD],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
    )  # fmt: skip
    return lively(transformers.Qwen2_5_VLForConditionalGeneration(config)), tokenizer


class QwenProcessor:
    """Of Qwen-Image's edits, in place of Qwen2VLProcessor, which needs torchvision: a picture as a row of tokens."""

    def __init__(self, tokenizer: transformers.Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer
        # Two times two tokens, whatever the picture's size.
        side = 4 * 14
        self.image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": side**2, "longest_edge": side**2})

    def __call__(self, text: list[str], images: Any = None, **more: Any) -> transformers.BatchFeature:
        seen = self.image_processor(images, return_tensors="pt") if images is not None else {}
        if not seen:
            return transformers.BatchFeature(dict(self.tokenizer(text, **more)))
        merged = self.image_processor.merge_size**2
        pads = [_PAD * (int(grid.prod()) // merged) for grid in seen["image_grid_thw"]]
        texts = [prompt.replace(_PAD, pad) for prompt, pad in zip(text, pads, strict=True)]
        return transformers.BatchFeature({**self.tokenizer(texts, **more), **seen})


def umt5() -> tuple[transformers.UMT5EncoderModel, transformers.T5TokenizerFast]:
    """Of Wan and AuraFlow."""
    _, tokenizer = t5()
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2
    )
    return transformers.UMT5EncoderModel(config), tokenizer


def _letters(
    side: str, cls: type[transformers.GemmaTokenizerFast] = transformers.GemmaTokenizerFast
) -> transformers.GemmaTokenizerFast:
    """A token for a letter, and one at the start: an empty prompt has a token, too. side: of the padding."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_CHARACTERS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return cls(vocab=vocabulary, merges=[], add_bos_token=True, padding_side=side)


class _Numbered(transformers.GemmaTokenizerFast):
    """Says the places of the tokens, too, as ChatGLM's does."""

    def __call__(self, *args: Any, **kwargs: Any) -> transformers.BatchEncoding:
        batch = super().__call__(*args, **kwargs)
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return batch


def chatglm() -> tuple[ChatGLMModel, transformers.GemmaTokenizerFast]:
    """Of Kolors; its own tokenizer needs sentencepiece and a file."""
    tokenizer = _letters("left", _Numbered)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=64,
        add_qkv_bias=True,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    with torch.no_grad():
        # Whatever stood in memory.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    return lively(model), tokenizer


def gemma2() -> tuple[transformers.Gemma2Model, transformers.GemmaTokenizerFast]:
    """Of Lumina 2."""
    tokenizer = _letters("right")
    config = transformers.Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **_SHAPE)
    return lively(transformers.Gemma2Model(config)), tokenizer


def llama(
    cls: type[transformers.PreTrainedModel] = transformers.LlamaModel,
) -> tuple[transformers.PreTrainedModel, transformers.GemmaTokenizerFast]:
    """Of HunyuanVideo and HiDream, which asks for attention weights."""
    tokenizer = _letters("right")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, attn_implementation="eager", **_SHAPE
    )
    return lively(cls(config)), tokenizer


def glm() -> tuple[transformers.GlmModel, transformers.GemmaTokenizerFast]:
    """Of CogView 4."""
    tokenizer = _letters("left")
    config = transformers.GlmConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id, **_SHAPE
    )
    return lively(transformers.GlmModel(config)), tokenizer


def bert() -> tuple[transformers.BertModel, transformers.BertTokenizer]:
    """Of HunyuanDiT."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_CHARACTERS, *("##" + letter for letter in _CHARACTERS)]
    tokenizer = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=77)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=80, **_SHAPE)
    return lively(transformers.BertModel(config)), tokenizer


def clap() -> tuple[transformers.ClapModel, transformers.RobertaTokenizer]:
    """Of AudioLDM 2: texts and sounds."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = transformers.ClapConfig(
        text_config={**_SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 80, "projection_dim": WIDTH},
        audio_config={
            "spec_size": 8, "window_size": 4, "num_mel_bins": 8, "depths": [1, 1], "num_attention_heads": [1, 1],
            "patch_size": 2, "patch_stride": 2, "patch_embeds_hidden_size": 8, "hidden_size": WIDTH,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )  # fmt: skip
    return lively(transformers.ClapModel(config)), tokenizer


def gpt2() -> transformers.GPT2LMHeadModel:
    """Of AudioLDM 2, which goes on with the states of two encoders; it reads no letters."""
    config = transformers.GPT2Config(
        vocab_size=8, n_embd=WIDTH, n_head=2, n_layer=2, n_positions=256, bos_token_id=None, eos_token_id=None
    )
    config.max_new_tokens = 8
    return lively(transformers.GPT2LMHeadModel(config))
