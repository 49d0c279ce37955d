"""How the models of a run are called: as they are, compiled, or in CUDA graphs of whole trajectories.

On a CPU for which torch's own product is slow, their linear layers go through `ops.linear`.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError
from pgraft_fast.ops.linear import linear, onednn_pays
from pgraft_fast.sampling import GraphCache, Model, calls_of

# Below, a product is over before its call is.
_LEAST_WEIGHTS = 1024


class Execution:
    """mode: see `FinetuneSettings`; "auto" where nobody has chosen is "graph_sampling" on CUDA. graphs: for `rollout`,
    training_graphs: for `train`, or None. Raises InputError for graphs without CUDA.
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        if "graph" in mode and device.type != "cuda":
            raise InputError(f"mode={mode!r} needs CUDA, the model is on {device}; set mode='eager'")
        captures = mode.startswith("graph") or (mode == "auto" and device.type == "cuda")
        self.graphs = GraphCache() if captures else None
        self.training_graphs = self.graphs if mode == "graph" else GraphCache() if mode == "compile_graph" else None
        self._compiles = {False: mode.startswith("compile"), True: mode == "compile"}
        self._twins = device.type == "cpu" and onednn_pays()
        self._models: dict[tuple[int, bool], tuple[nn.Module, Model]] = {}
        self._copies: dict[int, Any] = {}

    def of(self, module: nn.Module, trained: bool = False) -> Model:
        """What to call instead of the module, itself where it is such a one; its weights may change in place.

        trained: whether it is called in training.
        """
        # Some run as they are.
        if getattr(module, "runs_as_it_is", False) or any(module is made for _, made in self._models.values()):
            return module
        key = (id(module), self._compiles[trained])
        if key not in self._models:
            # The module is kept, so that no other one gets its id.
            self._models[key] = (module, self._made(module, self._compiles[trained]))
        return self._models[key][1]

    def _made(self, module: nn.Module, compiles: bool) -> Model:
        # What is around the networks of some is not for a compiler.
        own: Any = getattr(module, "compiled", None)
        if compiles and own is not None:
            return own(torch.compile)
        run: Any = _Twin(module, {} if compiles else self._copies) if self._twins else module
        return torch.compile(run) if compiles else run

    def original(self, called: Model) -> nn.Module:
        """The module that is called so, with the names of its weights: that which `of` was asked for."""
        for module, made in self._models.values():
            if made is called:
                return module
        network: Any = called
        return network


class _Twin(nn.Module):
    """The same weights in another tree of modules, whose linear layers are `ops.linear`.

    copies: of deepcopy, so that models on one network share its twin; what was copied is kept alive there.
    """

    def __init__(self, module: nn.Module, copies: dict[int, Any]) -> None:
        super().__init__()
        self.twin = _copied(module, copies)
        if [id(value) for value in _tensors(module)] != [id(value) for value in _tensors(self.twin)]:
            # What they share has got other layers since, a LoRA for one.
            copies.clear()
            self.twin = _copied(module, copies)
        for layer in self.twin.modules():
            if type(layer) is nn.Linear and layer.weight.numel() >= _LEAST_WEIGHTS:
                layer.__class__ = _Linear
        # No children: their weights are counted once.
        self._original = [module]
        self._pairs = list(zip(module.modules(), self.twin.modules(), strict=True))
        self.calls_a_sample = calls_of(module)
        self.initial_state = getattr(module, "initial_state", None)
        self.thread_safe = getattr(module, "thread_safe", False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        original = self._original[0]
        # What a compiled model shares with no other follows it as a whole.
        if not torch.compiler.is_compiling() or original.training is not self.twin.training:
            for module, twin in self._pairs:
                if module.training is not twin.training:
                    twin.training = module.training
        return self.twin(*args, **kwargs)


def _copied(module: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """All but the weights."""
    copies.update({id(value): value for value in _tensors(module)})
    return copy.deepcopy(module, copies)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
