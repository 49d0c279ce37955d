"""Diffusers' text-to-image pipelines as models of prompt numbers: denoiser, prompt table, decoder, LoRA."""

from pgraft_fast.text_to_image.denoiser import Denoiser
from pgraft_fast.text_to_image.images import Decoder
from pgraft_fast.text_to_image.kinds import Kind, kind_of
from pgraft_fast.text_to_image.learners import FullLearner, LoraLearner, LoraSettings
from pgraft_fast.text_to_image.loading import load_pipeline
from pgraft_fast.text_to_image.prompt_files import PromptFile, read_prompts
from pgraft_fast.text_to_image.prompt_table import PromptTable

__all__ = [
    "Decoder",
    "Denoiser",
    "FullLearner",
    "Kind",
    "LoraLearner",
    "LoraSettings",
    "PromptFile",
    "PromptTable",
    "kind_of",
    "load_pipeline",
    "read_prompts",
]
