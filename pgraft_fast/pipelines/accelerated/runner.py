"""How the steps of a trajectory are run: plainly, compiled, or as CUDA graphs of a step or of all steps."""

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.accelerated.rehearsal import listed
from pgraft_fast.pipelines.accelerated.trajectory import Functions, Trajectory, function_of
from pgraft_fast.pipelines.switches import runs_hooks, switches_of
from pgraft_fast.sampling.choice import choose, model_name
from pgraft_fast.sampling.graphs import GraphCache, clone_generator, weights_key
from pgraft_fast.sampling.rounding import allowed_for

_LOG = logging.getLogger(__name__)

# Of a trajectory, in the trial: a whole one of a large model takes as long as a picture.
_TRIED_STEPS = 3
MODES = ("eager", "compile", "step_graph", "trajectory_graph", "compile_trajectory_graph")


class Runner:
    """Runs trajectories of one pipeline.

    mode: one of MODES, or "auto": on CUDA the fastest by a trial of a few steps, remembered on disk for device, model
    and shapes; elsewhere "eager", since compiling takes minutes and there are no graphs. memory_limit: bytes of graphs.
    """

    def __init__(self, mode: str = "auto", memory_limit: int | None = None, modes: tuple[str, ...] = MODES) -> None:
        if mode not in ("auto", *MODES):
            raise InputError(f"mode={mode!r} is unknown; known: auto, {', '.join(MODES)}")
        self.mode, self.memory_limit = mode, memory_limit
        self.chosen: dict[Hashable, str] = {}
        self._modes = modes
        self._graphs, self._graphs_in_use = GraphCache(memory_limit), threading.Lock()
        self._compiled: dict[int, Any] = {}
        # How what a captured network returned is put together.
        self._answers: dict[Any, Any] = {}

    def run(self, trajectory: Trajectory, x: Tensor, first: int, last: int) -> Tensor:
        """States at step `last`."""
        mode = self._mode(trajectory, x, first, last)
        # A graph's buffers belong to one call at a time.
        with self._graphs_in_use if mode.endswith("graph") else nullcontext():
            return self._run(mode, trajectory, x, first, last)

    def run_handover(
        self, trajectory: Trajectory, x: Tensor, first: int, handover: int, switch: Callable[[], None]
    ) -> Tensor:
        """States at the end; switch() is called before step `handover`. Each side is a partial trajectory."""
        middle = min(max(handover, first), trajectory.last)
        if first < middle:
            x = self.run(trajectory, x, first, middle)
        switch()
        return self.run(trajectory, x, middle, trajectory.last) if middle < trajectory.last else x

    def check(self, device: torch.device) -> None:
        """Raise InputError for states on a device that the mode is not for."""
        if device.type != "cuda" and self.mode.endswith("graph"):
            raise InputError(f"mode={self.mode!r} needs CUDA tensors, the pipeline is on {device}")

    def clear(self) -> None:
        """Drop graphs and compiled models."""
        self._graphs.clear()
        self._compiled.clear()
        self._answers.clear()

    def _mode(self, trajectory: Trajectory, x: Tensor, first: int, last: int) -> str:
        self.check(x.device)
        if x.device.type != "cuda":
            return "eager" if self.mode == "auto" else self.mode
        # Offloaded weights move between calls; a graph would read where they were, and call no hooks.
        if any(runs_hooks(net) for net in trajectory.nets.values()):
            return "eager"
        if self.mode != "auto":
            return self.mode
        what = _question(trajectory, x)
        if what not in self.chosen:
            self.chosen[what] = self._trial(what, trajectory, x, first, last)
        return self.chosen[what]

    def _trial(self, what: str, trajectory: Trajectory, x: Tensor, first: int, last: int) -> str:
        options, last = trajectory.options, min(last, first + _TRIED_STEPS)
        default = torch.cuda.get_rng_state(x.device)

        def way(mode: str) -> Callable[[], object]:
            def run() -> Tensor:
                # Each with the same noise.
                torch.cuda.set_rng_state(default, x.device)
                if "generator" in options:
                    trajectory.options = options | {"generator": _clones(options["generator"])}
                with trajectory.rehearsal():
                    return self._run(mode, trajectory, x, first, last)

            return run

        try:
            # Where it cannot be captured, the graph of all steps is that of each step.
            modes = [mode for mode in self._modes if mode != "trajectory_graph" or _can_capture(trajectory)]
            weights = [next(net.parameters()).dtype for net in trajectory.nets.values()]
            allowed = max(allowed_for(dtype, x.device) for dtype in (x.dtype, *weights))
            return choose(what, {mode: way(mode) for mode in modes}, x.device, allowed=allowed)
        finally:
            trajectory.options = options
            torch.cuda.set_rng_state(default, x.device)
            # Those of the ways that lost hold as much memory as that of the one that won, which is captured again.
            self._graphs.clear()

    def _run(self, mode: str, trajectory: Trajectory, x: Tensor, first: int, last: int) -> Tensor:
        nets = trajectory.nets
        if mode.startswith("compile"):
            nets = {name: self._compile(net) for name, net in nets.items()}
        functions: Functions = {name: function_of(net) for name, net in nets.items()}
        if mode.endswith("trajectory_graph") and _can_capture(trajectory):
            end = self._replay(mode, trajectory, x, first, last, functions)
            if end is not None:
                return end
        elif mode.endswith("graph"):
            functions = self._step_graphs(trajectory, functions)
        return trajectory.run(x, first, last, functions)

    def _compile(self, denoiser: Any) -> Any:
        if _is_compiled(denoiser):
            return denoiser
        compiled = self._compiled.get(id(denoiser))
        if compiled is None:
            compiled = self._compiled[id(denoiser)] = torch.compile(denoiser)
        return compiled

    def _step_graphs(self, trajectory: Trajectory, functions: Functions) -> Functions:
        """Calls of networks as graphs, for as long as memory suffices."""
        return {name: self._step_graph(name, net, functions[name]) for name, net in trajectory.nets.items()}

    def _step_graph(self, name: str, net: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        weights, compiled = weights_key(net, switches_of), _is_compiled(net)

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, shape = pytree.tree_flatten((args, kwargs))
            places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            device = leaves[places[0]].device
            others = repr([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
            key = ("step", name, str(shape), others, weights)

            def captured(inputs: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
                filled = list(leaves)
                for place, value in zip(places, inputs, strict=True):
                    filled[place] = value
                own_args, own_kwargs = pytree.tree_unflatten(filled, shape)
                tensors, self._answers[key] = pytree.tree_flatten(function(*own_args, **own_kwargs))
                return tensors

            inputs = [leaves[place].to(device) for place in places]
            done = self._graphs.run(key, captured, inputs, compiled=compiled)
            return function(*args, **kwargs) if done is None else pytree.tree_unflatten(done, self._answers[key])

        return call

    def _replay(
        self, mode: str, trajectory: Trajectory, x: Tensor, first: int, last: int, functions: Functions
    ) -> Tensor | None:
        """The steps first ... last - 1 as one graph."""
        leaves, shape = pytree.tree_flatten(list(trajectory.arguments))
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        generators = listed(trajectory.options.get("generator"))
        scheduler, options = trajectory.scheduler, trajectory.options
        single = not isinstance(options.get("generator"), list)
        # Model outputs of the steps before, of a multistep solver; None where there are none yet.
        history = list(getattr(scheduler, "model_outputs", ()))

        def function(inputs: list[Tensor], own: list[torch.Generator]) -> list[Tensor]:
            rest = iter(inputs[1:])
            earlier = [None if m is None else next(rest) for m in history]
            filled = list(leaves)
            for place, value in zip(places, rest, strict=True):
                filled[place] = value
            with trajectory.rehearsal():
                if history:
                    scheduler.model_outputs = earlier
                trajectory.arguments = pytree.tree_unflatten(filled, shape)
                if own:
                    trajectory.options = options | {"generator": own[0] if single else own}
                end = trajectory.run(inputs[0], first, last, functions)
                return [end, *(m for m in getattr(scheduler, "model_outputs", ()) if m is not None)]

        others = repr([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
        key = (
            mode, first, last, str(shape), others,
            tuple(weights_key(net, switches_of) for net in trajectory.nets.values()), _schedule_key(scheduler),
            trajectory.explanation.text,
            repr({k: v for k, v in options.items() if k != "generator"}), len(generators), single,
        )  # fmt: skip
        inputs = [x, *(m for m in history if m is not None), *(leaves[place].to(x.device) for place in places)]
        arguments = trajectory.arguments
        compiled = mode.startswith("compile") or any(_is_compiled(net) for net in trajectory.nets.values())
        try:
            outputs = self._graphs.run(
                key, function, inputs, generators, lambda: (scheduler.timesteps, trajectory.times, scheduler.tables()),
                compiled,
            )  # fmt: skip
        finally:
            trajectory.arguments, trajectory.options = arguments, options
        if outputs is None:
            return None
        _set_counters(scheduler, last - first, outputs[1:])
        for _ in range(first, last):
            trajectory.ends()
        return outputs[0]


def _schedule_key(scheduler: Any) -> tuple[Any, ...]:
    sigmas = scheduler.host_sigmas() if hasattr(scheduler, "sigmas") else None
    return (
        type(scheduler).__name__,
        repr(sorted(scheduler.config.items(), key=str)),
        tuple(scheduler.times().values),
        () if sigmas is None else tuple(sigmas.tolist()),
        getattr(scheduler, "_step_index", None),
        getattr(scheduler, "lower_order_nums", 0),
    )


def _is_compiled(module: Any) -> bool:
    """By its owner."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _question(trajectory: Trajectory, x: Tensor) -> str:
    """The trial's key on disk."""
    nets = [getattr(net, "_orig_mod", net) for net in trajectory.nets.values()]
    return (
        f"{', '.join(model_name(net, x.device) for net in nets)}, state {tuple(x.shape)}, "
        f"{trajectory.last} steps, guided {trajectory.guided}, {type(trajectory.scheduler).__name__}, "
        f"torch {torch.__version__}"
    )


def _clones(generator: Any) -> Any:
    if isinstance(generator, list):
        return [clone_generator(g) for g in generator]
    return None if generator is None else clone_generator(generator)


def _can_capture(trajectory: Trajectory) -> bool:
    """Noise that a generator of the host draws cannot be drawn inside of a graph, nor are all steps made there."""
    generators = listed(trajectory.options.get("generator"))
    return trajectory.scheduler.captures and all(generator.device.type == "cuda" for generator in generators)


def _set_counters(scheduler: Any, steps: int, history: list[Tensor]) -> None:
    """The scheduler's counters after steps that a graph made."""
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = (scheduler._step_index or 0) + steps
    if hasattr(scheduler, "model_outputs"):
        size = len(scheduler.model_outputs)
        scheduler.model_outputs = [*[None] * (size - len(history)), *history]
        scheduler.lower_order_nums = min(scheduler.lower_order_nums + steps, scheduler.config.solver_order)
