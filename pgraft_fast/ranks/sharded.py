"""Networks of which each rank holds a share (FSDP2).

A block's weights are put together on every rank for the length of its call, and again in its backward pass, whose
gradients are added up and dealt. So all ranks call a sharded network equally often, see `Turns`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from pgraft_fast.errors import InputError
from pgraft_fast.ranks.parts import copy_into, gathered
from pgraft_fast.ranks.turns import WHOLE

Net = TypeVar("Net", bound=nn.Module)
# Of a network's weights: a larger block is cut at the lists within it, a smaller one goes with what is around it.
_MOST, _LEAST = 1 / 8, 1 / 256
_CALLED_IN = "_pgraft_fast_called_in"


def mesh_of(device: torch.device) -> DeviceMesh:
    """All ranks, whose tensors are on devices of this type."""
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def shard(
    net: Net, mesh: DeviceMesh, *, whole: Collection[nn.Parameter] = (), compute: torch.dtype | None = None,
    blocks: Sequence[str] | None = None,
) -> Net:  # fmt: skip
    """Leave each rank its share of the weights, in place; a network on the host comes to the mesh's device.

    whole: weights that every rank keeps; the others that are trained have one dtype. compute: dtype in which the others
    are called, default their own. blocks: by name, default `blocks_of`. Gradients are sums over the ranks, not means.
    Nothing is left of a weight between two calls, so that the shares may be written at any time. Copies, twins,
    compilers, graphs and threads cannot call it.

    Raises InputError for weights of integers.
    """
    ignored = {*whole, *(weight for weight in net.parameters() if weight.ndim == 0)}
    for name, weight in net.named_parameters():
        if weight in ignored:
            weight.data = weight.data if weight.is_meta else weight.data.to(mesh.device_type)
        elif not weight.is_floating_point():
            raise InputError(f"{type(net).__name__}.{name}: weights of {weight.dtype} cannot be sharded; load it whole")
        elif not weight.is_contiguous():
            weight.data = weight.data.contiguous()
    dtypes = {weight.dtype for weight in net.parameters()} | ({compute} if compute else set())
    half = any(dtype.itemsize < torch.float32.itemsize for dtype in dtypes)
    policy = MixedPrecisionPolicy(compute, torch.float32 if half else None, cast_forward_inputs=False)
    for name in [*(blocks_of(net, ignored) if blocks is None else blocks), ""]:
        part = net.get_submodule(name)
        part.register_forward_hook(_not_views)
        made: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=ignored)
        made.set_gradient_divide_factor(1.0)
        # Gloo has no other one.
        made.set_force_sum_reduction_for_comms(True)
    _recovers(net)
    marks = {"runs_as_it_is": True, "can_be_captured": False, "thread_safe": False, _CALLED_IN: compute}
    for name, value in marks.items():
        setattr(net, name, value)
    # In files and messages it has the name that it had.
    type(net).__name__ = type(net).__mro__[2].__name__
    return net


def is_sharded(net: nn.Module) -> bool:
    """Whether each rank has a share of it."""
    return isinstance(net, FSDPModule)


def blocks_of(
    net: nn.Module, whole: Collection[nn.Parameter] = (), call: Callable[[], object] | None = None
) -> list[str]:  # fmt: skip
    """Names of what is put together at once, inner ones first: members of the outermost lists of modules.

    A member with more than an eighth of the weights is cut in the same way. One that shares a weight with what is
    outside of it, or has next to none, is no block. call: calls the network; a member within which a module was called
    from outside is none, either.
    """
    kept = {id(weight) for weight in whole}
    uses = Counter(id(weight) for weight in _weights(net))
    total = sum(weight.numel() for weight in net.parameters() if id(weight) not in kept)
    blocks: list[nn.Module] = []

    def search(part: nn.Module) -> None:
        for child in part.children():
            for member in child if isinstance(child, nn.ModuleList) else ():
                visit(member)
            if not isinstance(child, nn.ModuleList):
                search(child)

    def visit(member: nn.Module) -> None:
        if member in blocks:
            return
        own = {id(weight): weight.numel() for weight in member.parameters() if id(weight) not in kept}
        size, before = sum(own.values()), len(blocks)
        if size > _MOST * total:
            search(member)
            inner = {id(weight) for block in blocks[before:] for weight in block.parameters()}
            size = sum(count for key, count in own.items() if key not in inner)
        inside = Counter(id(weight) for weight in _weights(member))
        if size >= _LEAST * total and all(uses[key] == count for key, count in inside.items()):
            blocks.append(member)

    search(net)
    opened = set() if call is None else _opened(blocks, call)
    names = {part: name for name, part in net.named_modules()}
    return [names[block] for block in blocks if block not in opened]


@torch.no_grad()
def _opened(blocks: Iterable[nn.Module], call: Callable[[], object]) -> set[nn.Module]:
    """Of these, within which a module is called while they are not."""
    running: Counter[nn.Module] = Counter()
    around: dict[nn.Module, list[nn.Module]] = {}
    opened: set[nn.Module] = set()
    hooks: list[Any] = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda part, _: running.update([part])))
        hooks.append(block.register_forward_hook(lambda part, *_: running.subtract([part]), always_call=True))
        for part in list(block.modules())[1:]:
            around.setdefault(part, []).append(block)

    def entered(part: nn.Module, _: object) -> None:
        opened.update(block for block in around[part] if not running[block])

    hooks += [part.register_forward_pre_hook(entered) for part in around]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return opened


def skeleton(model: Net) -> Net:
    """A copy without weights: they are on the device "meta". Before it is sharded."""
    if any(is_sharded(part) for part in model.modules()):
        raise InputError(f"{type(model).__name__} is sharded, and cannot be copied; make its learner before")
    blank: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, blank)


@torch.no_grad()
def fill(net: nn.Module, source: nn.Module, mesh: DeviceMesh) -> None:
    """A sharded skeleton gets memory, and the weights of another network of the same kind."""
    net._apply(lambda value: torch.empty_like(value, device=mesh.device_type) if value.is_meta else value)
    copy_weights(net, source)


@torch.no_grad()
def copy_weights(net: nn.Module, source: nn.Module) -> None:
    """From a network of the same kind; each of them may be sharded, or in part."""
    for own, other in zip(net.parameters(), source.parameters(), strict=True):
        copy_into(own, other)


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    """The weights of a sharded network on the host of rank 0, in the dtypes in which it is called; {} on the others.

    Called by all ranks.
    """
    dtype = getattr(net, _CALLED_IN, None)
    state = gathered({"": net.state_dict()}).get("", {})
    sharded = {name for name, weight in net.named_parameters() if isinstance(weight, DTensor)}
    return {name: value.to(dtype) if dtype and name in sharded else value for name, value in state.items()}


@contextmanager
def whole_states(model: nn.Module) -> Iterator[None]:
    """In here its sharded networks have `whole_state` at hand, so that the first rank may write it by itself."""
    parts = [part for part in model.modules() if _CALLED_IN in vars(part)]
    try:
        for part in parts:
            vars(part)[WHOLE] = whole_state(part)
        yield
    finally:
        for part in parts:
            vars(part).pop(WHOLE, None)


def called_in(net: nn.Module) -> torch.dtype:
    """The dtype of most weights; others of a network in training are kept whole."""
    sizes: Counter[torch.dtype] = Counter()
    for weight in net.parameters():
        sizes[weight.dtype] += weight.numel()
    return sizes.most_common(1)[0][0]


def kept_whole(net: nn.Module) -> list[nn.Parameter]:
    """Weights of a network in training of another dtype than most: those of a block have one when they are dealt."""
    dtype = called_in(net)
    return [weight for weight in net.parameters() if weight.dtype is not dtype]


def _weights(net: nn.Module) -> Iterator[Tensor]:
    """Each as often as a module has it."""
    for part in net.modules():
        yield from _own(part._parameters.values())


def _own(values: Iterable[Tensor | None]) -> Iterator[Tensor]:
    yield from (value for value in values if value is not None)


def _not_views(part: nn.Module, args: object, out: Any) -> Any:
    """FSDP does not notice the backward pass of a view that is written to; before its own hook."""

    def own(value: Tensor) -> Tensor:
        return value.clone() if value._is_view() and value.requires_grad else value

    return tree_map_only(Tensor, own, out)


def _recovers(net: Any) -> None:
    """A call that raises leaves marks, which the next one removes."""
    open_calls: list[bool] = []

    def before(*_: object) -> None:
        if open_calls:
            open_calls.clear()
            # Before torch 2.13 there was no way back.
            getattr(net, "reset_iter_state", list)()
        open_calls.append(True)

    net.register_forward_pre_hook(before, prepend=True)
    net.register_forward_hook(lambda *_: open_calls.clear())
