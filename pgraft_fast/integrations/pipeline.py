"""`accelerate(pipe)`: the fast scheduler and the fast loop inside of an existing diffusers pipeline."""

import functools
import inspect
import logging
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.integrations.attention import Attention, check_kind
from pgraft_fast.integrations.families import Family, denoiser_of, family_of
from pgraft_fast.sizes import GB

if TYPE_CHECKING:
    from pgraft_fast.integrations.runner import Runner

_LOG = logging.getLogger(__name__)
_MOST_GB = 10**6


@dataclass
class _State:
    """What `accelerate` holds for one pipeline and `restore` needs."""

    pipe_class: type
    scheduler: Any
    registered: Any
    family: Family | None
    runner: "Runner"
    attention: Attention
    fast: Any = None
    known: dict[Any, Any] = field(default_factory=dict)


def accelerate(pipe: Any, *, mode: str = "auto", attention: str = "keep", graph_memory_gb: float | None = None) -> Any:
    """Make a diffusers pipeline sample faster; its calls, arguments and pictures stay the same. Returns the pipeline.

    The scheduler becomes the fast one of the same class and configuration. For DDPM, DDIM, Stable Diffusion 1, 2, XL
    and 3, Flux, PixArt and Sana pipelines the denoising loop runs outside of the pipeline as well, on CUDA as captured
    graphs; with callbacks (but PGraftCallback), and for anything the loop does not explain, the pipeline's own loop
    runs. Other pipelines get the scheduler and one log line.
    mode: "auto", "eager", "compile", "step_graph", "trajectory_graph", "compile_trajectory_graph"; see
    `integrations.runner.Runner`. attention: "keep", "sdpa", "xformers" or "auto", the faster of the two.
    graph_memory_gb: limit of the memory that graphs keep, in GB of 10^9 bytes.

    Raises InputError. `restore(pipe)` undoes it.
    """
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "register_to_config"):
        raise InputError(f"accelerate needs a diffusers pipeline with a scheduler, got {type(pipe).__name__}")
    from pgraft_fast.integrations.runner import Runner

    if graph_memory_gb is not None and not 0 <= graph_memory_gb < _MOST_GB:
        raise InputError(f"graph_memory_gb={graph_memory_gb}: from 0 to below {_MOST_GB:,}")
    runner = Runner(mode, None if graph_memory_gb is None else int(graph_memory_gb * GB))
    check_kind(attention)
    restore(pipe)
    family = family_of(pipe)
    state = _State(
        pipe_class=type(pipe),
        scheduler=pipe.scheduler,
        registered=pipe.config.get("scheduler"),
        family=family,
        runner=runner,
        attention=Attention(getattr(pipe, family.denoiser) if family else denoiser_of(pipe), attention),
    )
    _swap_scheduler(pipe, state)
    if family is None:
        _LOG.info("%s: its loop is not known; it gets the fast scheduler only", type(pipe).__name__)
    pipe.__dict__["_pgraft_fast"] = state
    pipe.__class__ = _accelerated(type(pipe), family is not None)
    return pipe


def restore(pipe: Any) -> Any:
    """Undo `accelerate`: class, scheduler and attention are as before. Returns the pipeline."""
    state = getattr(pipe, "__dict__", {}).pop("_pgraft_fast", None)
    if state is None:
        return pipe
    pipe.__class__ = state.pipe_class
    if state.fast is pipe.scheduler:
        pipe.scheduler = state.scheduler
        pipe.register_to_config(scheduler=state.registered)
    state.attention.undo()
    state.runner.clear()
    return pipe


def _swap_scheduler(pipe: Any, state: _State) -> None:
    from pgraft_fast import schedulers

    old = pipe.scheduler
    known = [name.removeprefix("Fast") for name in schedulers.__all__]
    name = type(old).__name__
    if name in schedulers.__all__:
        return
    if name not in known or not type(old).__module__.startswith("diffusers."):
        _LOG.info("%s has no fast version and stays; known: %s", name, ", ".join(known))
        return
    new = state.fast = getattr(schedulers, f"Fast{name}").from_config(old.config)
    if getattr(old, "_shift", None) is not None:
        new._shift = old._shift
    pipe.scheduler = new
    # Saved under the name of diffusers' class, so that the folder loads without this package.
    pipe.register_to_config(scheduler=state.registered)


def _accelerated(cls: Any, known: bool) -> type:
    """A subclass that calls through a Session where its loop is known, under the name of the class itself."""
    from pgraft_fast.integrations.shortcuts import shortcuts

    @wraps(cls.__call__)
    def through_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(self, cls, args, kwargs)

    told = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__}
    names = {"__call__": through_session, **told, **(shortcuts(cls) if known else {})}
    return type(cls.__name__, (cls,), names)


def _call(pipe: Any, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from pgraft_fast.integrations.runner import listed
    from pgraft_fast.integrations.session import NotAsUnderstoodError, Session

    state: _State = pipe.__dict__["_pgraft_fast"]
    if state.family is None:
        return cls.__call__(pipe, *args, **kwargs)
    names, defaults = _parameters(cls.__call__)
    arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    if state.attention.open:
        bound = inspect.signature(cls.__call__).bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        state.attention.settle(bound, cls.__call__)
    # A call that turns out otherwise than understood is repeated from the same random state.
    generators = listed(arguments.get("generator"))
    before = [one.get_state() for one in generators]
    host, devices = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with Session(pipe, state.family, state.runner, arguments, state.known):
            return cls.__call__(pipe, *args, **kwargs)
    except NotAsUnderstoodError:
        _LOG.info("%s: this call does not run as the one before; it starts again in its own loop", cls.__name__)
    for one, value in zip(generators, before, strict=True):
        one.set_state(value)
    torch.set_rng_state(host)
    torch.cuda.set_rng_state_all(devices)
    state.known.clear()
    return cls.__call__(pipe, *args, **kwargs)


@functools.cache
def _parameters(function: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of a method's arguments without self, in order, and the defaults."""
    given = list(inspect.signature(function).parameters.values())[1:]
    names = [one.name for one in given if one.kind is one.POSITIONAL_OR_KEYWORD]
    return names, {one.name: one.default for one in given if one.default is not one.empty}
