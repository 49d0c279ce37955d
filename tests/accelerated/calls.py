"""Calls of a pipeline before, under and after `accelerate`, compared."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from pipelines import build, call_arguments

from pgraft_fast import accelerate, restore
from pgraft_fast_benchmarks.models import twin

# Pipelines that are called and not changed.
cached = cache(build)


def another(name: str) -> Any:
    """A pipeline of its own with a scheduler of its own; its models are shared, and not to be changed."""
    return twin(cached(name))


@dataclass
class Result:
    """What a call gave, and the generators' states after it, the default one last."""

    picture: np.ndarray
    kind: str
    randomness: list[torch.Tensor] = field(default_factory=list)


def call(pipe: Any, name: str, seed: int | list[int] | None = 0, **more: Any) -> Result:
    """pipe(...) with the least arguments and `more`. seed: of one generator or several; None: the default one."""
    torch.manual_seed(5)
    seeds = seed if isinstance(seed, list) else [] if seed is None else [seed]
    own = [torch.Generator().manual_seed(value) for value in seeds]
    generator = own if isinstance(seed, list) else next(iter(own), None)
    arguments = {**call_arguments(name), "num_inference_steps": 4, "generator": generator} | more
    if "timesteps" in more or "sigmas" in more:
        arguments |= {"num_inference_steps": len(more.get("timesteps", more.get("sigmas")))}
    out = pipe(**arguments)
    return Result(values(out), kind(out), [*(source.get_state() for source in own), torch.get_rng_state()])


def kind(out: Any) -> str:
    """The types of an output and of its pictures."""
    pictures = out[0] if isinstance(out, tuple) else out.images
    inner = f" of {type(pictures[0]).__name__}" if isinstance(pictures, list) else ""
    return f"{type(out).__name__}: {type(pictures).__name__}{inner}"


def values(out: Any) -> np.ndarray:
    """The pictures of an output as one array; 8-bit ones by 255."""
    pictures = out[0] if isinstance(out, tuple) else out.images
    if isinstance(pictures, torch.Tensor):
        return pictures.float().numpy()
    if isinstance(pictures, list):
        return np.stack([np.asarray(picture, dtype=np.float32) / 255.0 for picture in pictures])
    return pictures


def off(got: Result, want: Result) -> float:
    """The largest difference, by the largest value where that is beyond 1. Everything else must be equal."""
    assert got.kind == want.kind and got.picture.shape == want.picture.shape
    assert all(torch.equal(a, b) for a, b in zip(got.randomness, want.randomness, strict=True))
    assert np.isfinite(want.picture).all()
    return float(np.abs(got.picture - want.picture).max() / max(1.0, np.abs(want.picture).max()))


def taken_over(pipe: Any) -> bool:
    """Whether a loop was understood, so that the next call like it skips it."""
    return bool(pipe._pgraft_fast.known)


def check_same(
    pipe: Any, name: str, seed: int | list[int] | None = 0, *, limit: float = 1e-4, taken: bool = True, **more: Any
) -> np.ndarray:
    """The same results before accelerate, in the calls after it, and after restore. taken: the loop is taken over."""
    more = {"num_inference_steps": 3} | more
    want = call(pipe, name, seed, **more)
    accelerate(pipe)
    try:
        for _ in range(2):
            assert off(call(pipe, name, seed, **more), want) <= limit
            assert taken_over(pipe) == taken
    finally:
        restore(pipe)
    assert off(call(pipe, name, seed, **more), want) == 0.0
    return want.picture
