"""The arguments of a pipeline's call: prompts one by one, several samples of each, with guidance and without."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.standin import function_of, parameters_of

# Facts that watching cannot tell: how a call is asked for several samples of a prompt, which arguments hold the prompt,
# and which set guidance, with the values that may switch it off.
SEVERAL = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
PROMPT = ("prompt", "class_labels")
GUIDANCE_OFF = {"true_cfg_scale": (1.0,), "guidance_scale": (1.0, 0.0), "pag_scale": (0.0,)}
# Iterations of one call. A loop that takes fewer gets as many as the run has steps.
LONG = 1000


@dataclass(frozen=True)
class Calls:
    """pipe: any pipeline of diffusers. prompts: what is asked for, by number; texts, or what the pipeline's first
    argument is. columns: more arguments that differ from prompt to prompt. call: those that are equal for all.
    guidance: scale, by whatever name the pipeline has for it; None is the pipeline's default. steps: of a trajectory.
    repeat: whether a prompt is written out for each of its samples, in place of the argument that asks for several.
    rows: samples of a call that is watched; 1 where the pipeline makes no more at once. long: iterations of one call.
    """

    pipe: Any
    prompts: Sequence[Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    guidance: float | None = None
    steps: int = 25
    repeat: bool = False
    rows: int = 2
    long: int = LONG

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the arguments that the pipeline takes."""
        return parameters_of(self.pipe)

    def check(self) -> None:
        """Raise InputError for arguments that the pipeline does not have."""
        kind = type(self.pipe).__name__
        unknown = [name for name in (*self.call, *self.columns) if name not in self.names]
        if unknown:
            raise InputError(f"call: {kind} takes no {', '.join(unknown)}")
        taken = [name for name in PROMPT if name in self.call]
        if taken:
            raise InputError(f"call: {taken[0]} is what the prompts are; give it as prompts")
        ours = ("num_inference_steps", "generator", "callback_on_step_end", "return_dict", "latents", *SEVERAL)
        taken = [name for name in (*self.call, *self.columns) if name in ours]
        if taken:
            raise InputError(f"call: {', '.join(taken)} is set by the run, leave it out")
        for name, values in self.columns.items():
            if len(values) != len(self.prompts):
                raise InputError(f"columns: {name} has {len(values)} values for {len(self.prompts)} prompts")
        if self.guidance is not None and self.guidance_name is None:
            raise InputError(f"guidance={self.guidance}: {kind} has no guidance; leave it out")

    def seeds(self, seed: int = 0) -> list[int]:
        """Of a call that is watched."""
        return seeds_of(seed, range(self.rows))

    @property
    def guidance_name(self) -> str | None:
        """The argument that holds the scale."""
        parameters = inspect.signature(function_of(self.pipe)).parameters
        plain, true = (parameters.get(name) for name in ("guidance_scale", "true_cfg_scale"))
        # Where both are, the one that is none by default is an input of models that were distilled.
        if true is not None and (plain is None or plain.default is None):
            return "true_cfg_scale"
        return None if plain is None else "guidance_scale"

    def without_guidance(self) -> Iterator["Calls"]:
        """The same with what one of the arguments guides switched off, for all that there are."""
        for name, values in GUIDANCE_OFF.items():
            guidance = None if name == self.guidance_name else self.guidance
            for value in values if name in self.names else ():
                if self.call.get(name) == value and guidance == self.guidance:
                    continue
                yield replace(self, call={**self.call, name: value}, guidance=guidance)

    def of(self, number: int, rows: int, seeds: Sequence[int], steps: int | None = None) -> dict[str, Any]:
        """Arguments for `rows` samples of a prompt, their noise drawn by generators of these seeds."""
        arguments: dict[str, Any] = {**self.call, **{name: values[number] for name, values in self.columns.items()}}
        several = None if self.repeat else next((name for name in SEVERAL if name in self.names), None)
        prompt = next((name for name in PROMPT if name in self.names), None)
        if prompt is not None:
            text = self.prompts[number]
            arguments[prompt] = text if several is not None and prompt == "prompt" else [text] * rows
        if several is not None:
            arguments[several] = rows
        elif "batch_size" in self.names and prompt is None:
            arguments["batch_size"] = rows
        if self.guidance is not None:
            arguments[str(self.guidance_name)] = self.guidance
        if "num_inference_steps" in self.names:
            arguments["num_inference_steps"] = self.long if steps is None else steps
        if "generator" in self.names:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            arguments["generator"] = generators[0] if rows == 1 else generators
        return arguments


def seeds_of(seed: int, sample_ids: Sequence[int] | range) -> list[int]:
    """A seed for each sample of a run, in [0, 2^63)."""
    texts = [f"pgraft_fast {seed} {int(number)}" for number in sample_ids]
    return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1 for text in texts]
