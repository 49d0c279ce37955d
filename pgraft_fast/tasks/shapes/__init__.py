"""Shapes: text to image that runs anywhere, with an exact checker as its reward. Everything is shipped."""

from pgraft_fast.tasks.shapes.checker import reward
from pgraft_fast.tasks.shapes.prompts import Prompt, parse, test_prompts, train_prompts
from pgraft_fast.tasks.shapes.render import render

__all__ = ["Prompt", "parse", "render", "reward", "test_prompts", "train_prompts"]
