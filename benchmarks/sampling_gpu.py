"""Denoisers of real size with random weights in bfloat16 on a GPU, from given embeddings to latents."""

import copy
import gc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines import accelerate
from pgraft_fast.pipelines.accelerated.attention import Attention
from pgraft_fast_benchmarks.calls import PipelineCall
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.models import LARGE, Large, twin

BATCHES = (1, 4, 16, 64)
STEPS = 30
PEERS = ("diffusers", "diffusers compile", "diffusers xformers")
# Of the first latent's root mean square, beside the error of diffusers itself in the same dtype.
_TOLERANCE = 0.01

_references: dict[tuple[str, int], Tensor] = {}


def cases(settings: Settings) -> Iterator[Case]:
    """Each model at each batch."""
    steps = 8 if settings.short else STEPS
    for name, large in LARGE.items():
        for batch in settings.by_size(BATCHES, BATCHES[:2], BATCHES[:1]):
            channels, side = large.config.get("in_channels", 4), large.config["sample_size"]
            yield Case(
                "sampling", name, (batch, channels, side, side), "bfloat16", None,
                partial(providers, name, large, batch, steps), columns={"batch": batch, "steps": steps},
                budget=settings.by_size(6.0, 2.0, 1.0), least=2, optional=True,
            )  # fmt: skip


def providers(
    name: str, large: Large, batch: int, steps: int, settings: Settings, **smaller: Any
) -> Sequence[Provider]:
    """Diffusers with torch's attention, compiled, with xformers; ours as it chooses, and without graphs or compiler.

    In a short run nothing is compiled: ours is a graph then.
    """
    release()
    torch.compiler.reset()
    device = settings.device
    denoiser = large.drawn(device, **smaller)
    denoiser.to(device, torch.bfloat16)
    pipe, arguments = large.pipe(denoiser), large.arguments(denoiser, batch, steps)
    mode = "trajectory_graph" if settings.short and device.type == "cuda" else "auto"
    ways: dict[str, Callable[[], Any]] = {
        "diffusers": lambda: pipe,
        "diffusers compile": lambda: twin(pipe, torch.compile(denoiser)),
        "diffusers xformers": lambda: twin(pipe, _with_xformers(denoiser)),
        "ours": lambda: accelerate(twin(pipe), mode=mode),
        "ours eager": lambda: accelerate(twin(pipe), mode="eager"),
    }
    if settings.short:
        del ways["diffusers compile"]
    calls = {way: PipelineCall(make, arguments, device, batch, steps) for way, make in ways.items()}
    errors: dict[str, float] = {}

    def gate(way: str) -> str | None:
        """The first latent, by the first call and by a later one, beside float32 with the same weights."""
        exact = _reference(name, large, denoiser, steps)
        first = torch.stack([latents[0].float().cpu() for latents in calls[way].twice("latent")])
        errors[way] = float((first - exact).flatten(1).norm(dim=1).max() / exact.norm())
        # Where diffusers itself did not run, there is nothing to compare with but float32.
        allowed = 1.5 * errors.get("diffusers", 0.0) + _TOLERANCE
        wrong = f"the first latent is {errors[way]:.2e} of its size off, allowed is {allowed:.2e}"
        return None if errors[way] <= allowed else wrong

    def columns(way: str) -> dict[str, Any]:
        return {**calls[way].columns(), "error": errors[way]}

    def provider(way: str) -> Provider:
        return Provider(
            way, calls[way], partial(gate, way), backend=settings.backend if way.startswith("ours") else None,
            optional=True, own_clock=True, columns=partial(columns, way),
        )  # fmt: skip

    return [provider(way) for way in ways]


def release() -> None:
    """Give back what the case before held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_xformers(denoiser: Any) -> Any:
    """A copy, since attention belongs to the model. Raises InputError without xformers, before it copies."""
    if importlib.util.find_spec("xformers") is None:
        raise InputError("xformers is missing: pip install 'pgraft-fast[xformers]'")
    other = copy.deepcopy(denoiser)
    Attention(other, "xformers")
    return other


def _reference(name: str, large: Large, denoiser: Any, steps: int) -> Tensor:
    """The first latent in float32 on the CPU; it is the same in every batch."""
    if (name, steps) not in _references:
        exact = copy.deepcopy(denoiser).float()
        arguments = large.arguments(exact, 1, steps)
        rounded = {key: x.bfloat16().float() if isinstance(x, Tensor) else x for key, x in arguments.items()}
        _references[name, steps] = large.pipe(exact)(**rounded).images[0].cpu()
        del exact
        release()
    return _references[name, steps]
