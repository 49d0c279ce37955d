"""`accelerate(pipe)`: the fast scheduler and the fast loop inside of an existing diffusers pipeline."""

import copy
import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.accelerated.attention import Attention, check_kind
from pgraft_fast.pipelines.accelerated.kinds import Kinds
from pgraft_fast.pipelines.accelerated.rehearsal import Randomness
from pgraft_fast.pipelines.around import IN_CALL, unwatch, watch
from pgraft_fast.pipelines.denoisers import denoiser_of
from pgraft_fast.pipelines.views import target_of
from pgraft_fast.sizes import GB

if TYPE_CHECKING:
    from pgraft_fast.pipelines.accelerated.runner import Runner

_LOG = logging.getLogger(__name__)
_MOST_GB = 10**6

STATE = "_pgraft_fast"
_ACCELERATED: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass
class State:
    """What `accelerate` holds for one pipeline and `restore` needs.

    scheduler: the pipeline's own. fast: that of ours with the same attributes, None where there is none. known: the
    kinds of calls that were understood.
    """

    scheduler: Any
    fast: Any
    runner: "Runner"
    attention: Attention
    known: Kinds = field(default_factory=Kinds)

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        """For a copied pipeline, which is accelerated, too."""
        fast, scheduler = copy.deepcopy(self.fast, memo), self.scheduler
        if fast is None:
            scheduler = copy.deepcopy(scheduler, memo)
        else:
            plain: Any = type(scheduler)
            scheduler = plain.__new__(plain)
            object.__setattr__(scheduler, "__dict__", vars(fast))
        runner = type(self.runner)(self.runner.mode, self.runner.memory_limit)
        return State(scheduler, fast, runner, copy.deepcopy(self.attention, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """A pipeline that was pickled is loaded as it would be without `accelerate`."""
        return type(None), ()


def accelerate(pipe: Any, *, mode: str = "auto", attention: str = "keep", graph_memory_gb: float | None = None) -> Any:
    """Make a diffusers pipeline sample faster; its calls, arguments and pictures stay the same. Returns the pipeline.

    The scheduler becomes the fast one of the same class and configuration, where there is one; others of diffusers make
    their own steps. The first call of a kind runs in the pipeline's own loop and is watched; calls of that kind, with
    other prompts and noise, then run outside of the pipeline, on CUDA as captured graphs. What a call does not explain
    at every step stays in the pipeline's own loop, with one log line that says what was seen; so do calls with
    callbacks (but PGraftCallback).
    mode: "auto", "eager", "compile", "step_graph", "trajectory_graph", "compile_trajectory_graph"; see
    `pipelines.accelerated.runner.Runner`. attention: "keep", "sdpa", "xformers" or "auto", the faster of the two.
    graph_memory_gb: limit of the memory that graphs keep, in GB of 10^9 bytes.

    Raises InputError. `restore(pipe)` undoes it.
    """
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "register_to_config"):
        raise InputError(f"accelerate needs a diffusers pipeline with a scheduler, got {type(pipe).__name__}")
    from pgraft_fast.pipelines.accelerated.runner import Runner

    if graph_memory_gb is not None and not 0 <= graph_memory_gb < _MOST_GB:
        raise InputError(f"graph_memory_gb={graph_memory_gb}: from 0 to below {_MOST_GB:,}")
    runner = Runner(mode, None if graph_memory_gb is None else int(graph_memory_gb * GB))
    check_kind(attention)
    restore(pipe)
    # A network that is left as it is, is not held either.
    denoiser = None if attention == "keep" else denoiser_of(pipe)
    state = State(
        scheduler=pipe.scheduler, fast=_fast(pipe.scheduler), runner=runner,
        attention=Attention(denoiser, attention),
    )  # fmt: skip
    if state.fast is not None:
        pipe.scheduler = state.fast
    _ACCELERATED.add(pipe)
    watch(type(pipe), _around)
    vars(pipe)[STATE] = state
    return pipe


def restore(pipe: Any) -> Any:
    """Undo `accelerate`: scheduler and attention are as before. Returns the pipeline."""
    state = getattr(pipe, "__dict__", {}).pop(STATE, None)
    if state is None:
        return pipe
    if state.fast is not None and state.fast is pipe.scheduler:
        pipe.scheduler = state.scheduler
    state.attention.undo()
    state.runner.clear()
    _ACCELERATED.discard(pipe)
    if not any(type(other) is type(pipe) for other in _ACCELERATED):
        unwatch(type(pipe), _around)
    return pipe


def _fast(scheduler: Any) -> Any:
    """The scheduler of ours that stands for this one, with the same attributes; None where there is none."""
    from pgraft_fast import schedulers
    from pgraft_fast.pipelines.accelerated.steps import steps_of

    known = {cls._original: cls for cls in (getattr(schedulers, name) for name in schedulers.__all__)}
    cls = known.get(type(scheduler))
    if cls is None and steps_of(scheduler) is None:
        why = "its step is not that of a scheduler of diffusers"
        _LOG.info("%s: calls run in the pipeline's own loop: %s", type(scheduler).__name__, why)
    return None if cls is None else cls.twin_of(scheduler)


def _around(pipe: Any, call: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The call itself where the pipeline is not accelerated, or is within such a call."""
    state: State | None = vars(target_of(pipe)).get(STATE)
    if state is None or getattr(pipe, IN_CALL, False):
        return call
    return functools.partial(_call, state, call, original)


def _call(
    state: State, call: Callable[..., Any], original: Callable[..., Any], pipe: Any, *args: Any, **kwargs: Any
) -> Any:
    from pgraft_fast.pipelines.accelerated.session import NotAsUnderstoodError, Session

    names, defaults = _parameters(original)
    arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    if state.attention.open:
        bound = inspect.signature(original).bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        state.attention.settle(bound, call)
    # A call that turns out otherwise than understood is repeated from the same random state.
    before = Randomness(arguments.get("generator"))
    try:
        with Session(pipe, state, arguments) as session:
            result = call(session.pipe, *args, **kwargs)
    except NotAsUnderstoodError:
        _LOG.info("%s: this call does not run as the one before; it starts again in its own loop", type(pipe).__name__)
        before.put_back()
        state.known.clear()
        return call(pipe, *args, **kwargs)
    understood = session.understood()
    if understood is not None and session.watch is not None and session.watch.final is not None:
        again = (understood, session.watch.final)
        with Session(pipe, state, arguments, rehearsed=again) as rehearsal:
            why = before.rehearse(lambda: call(rehearsal.pipe, *args, **kwargs), result)
        if why is None:
            session.remember(understood)
        else:
            session.leave(why)
    return result


@functools.cache
def _parameters(function: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of a method's arguments without self, in order, and the defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return names, {p.name: p.default for p in parameters if p.default is not p.empty}
