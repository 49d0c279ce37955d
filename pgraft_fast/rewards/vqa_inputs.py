"""A picture and a question as the inputs of a vision-language model, without torchvision."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.local_models import load_tool
from pgraft_fast.rewards.protocol import one_line

# (pictures, questions) -> what the model's forward takes
Prepare = Callable[[Sequence[Image.Image], Sequence[str]], dict[str, torch.Tensor]]


def preparation(folder: Path, model: Any) -> tuple[Prepare, Any]:
    """(pictures and questions -> inputs on the CPU, tokenizer) of a model in a folder.

    Chat models get their chat template, padded on the left, so that the answer's first token is the next one; the
    encoder-decoders BLIP-2 and InstructBLIP get the question as it is. Qwen2-VL and its kin are prepared here, because
    their processor cannot be made without torchvision. Raises RewardError where the folder's processor cannot be made.
    """
    try:
        processor = load_tool("AutoProcessor", folder, use_fast=False)
    except ImportError as error:
        if hasattr(model.config, "image_token_id") and hasattr(model.config, "vision_start_token_id"):
            return _grid_preparation(folder, model)
        raise RewardError(
            f"{folder}: the processor of {type(model).__name__} cannot be made: {one_line(error, 120)}; "
            "use a model that needs no torchvision (InstructBLIP, LLaVA, Qwen2-VL)"
        ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise RewardError(f"{folder}: its processor has no tokenizer; tokenizer.json is missing")
    if is_encoder_decoder(model):
        return _plain_preparation(processor), tokenizer
    tokenizer.padding_side = "left"
    if not getattr(processor, "chat_template", None):
        raise RewardError(f"{folder}: has no chat template (chat_template.jinja), so how to ask is not known")
    return _chat_preparation(processor, tokenizer), tokenizer


def is_encoder_decoder(model: Any) -> bool:
    """Whether the answer is read from a decoder of its own."""
    return bool(getattr(model.config.get_text_config(), "is_encoder_decoder", False))


def _plain_preparation(processor: Any) -> Prepare:
    def prepare(pictures: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        return dict(processor(images=list(pictures), text=list(questions), padding=True, return_tensors="pt"))

    return prepare


def _chat_preparation(processor: Any, tokenizer: Any) -> Prepare:
    def prepare(pictures: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        texts = [processor.apply_chat_template(_chat(q), tokenize=False, add_generation_prompt=True) for q in questions]
        images = [[picture] for picture in pictures]
        special = not _begins(texts[0], tokenizer)
        return dict(processor(images=images, text=texts, padding=True, add_special_tokens=special, return_tensors="pt"))

    return prepare


def _grid_preparation(folder: Path, model: Any) -> tuple[Prepare, Any]:
    """Every picture is a grid of patches, merge_size^2 of which are one token."""
    tokenizer = load_tool("AutoTokenizer", folder)
    images = load_tool("AutoImageProcessor", folder, use_fast=False)
    tokenizer.padding_side = "left"
    image_id = int(model.config.image_token_id)
    image_token = tokenizer.convert_ids_to_tokens(image_id)
    typed = "mm_token_type_ids" in inspect.signature(model.forward).parameters

    def prepare(pictures: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        pixels = images(images=list(pictures), return_tensors="pt")
        tokens = (pixels["image_grid_thw"].prod(dim=1) // images.merge_size**2).tolist()
        texts = [
            tokenizer.apply_chat_template(_chat(q), tokenize=False, add_generation_prompt=True).replace(
                image_token, image_token * n
            )
            for q, n in zip(questions, tokens, strict=True)
        ]
        special = not _begins(texts[0], tokenizer)
        ids = tokenizer(texts, padding=True, add_special_tokens=special, return_tensors="pt")
        inputs = {**pixels, "input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
        if typed:
            inputs["mm_token_type_ids"] = (ids["input_ids"] == image_id).int()
        return inputs

    return prepare, tokenizer


def _chat(question: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def _begins(text: str, tokenizer: Any) -> bool:
    """Whether a template has put the token that begins a text there already."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
