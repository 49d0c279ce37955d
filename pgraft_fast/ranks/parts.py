"""This rank's part of a sharded tensor, and the whole of it."""

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

Groups = dict[str, dict[str, Tensor]]
Named = Mapping[str, Mapping[str, Tensor]]


def part_of(tensor: Tensor) -> Tensor:
    """This rank's, in the same memory; of a tensor that is no sharded one itself."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_of(tensor: Tensor) -> Tensor:
    """Put together from all ranks, which call this in the same order; of a tensor that is no sharded one itself."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """A rank's part of what is sharded as another tensor is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that is whole, or sharded as the other one is."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return part_of(tensor)
    (place,) = like.placements
    assert isinstance(place, Shard)
    rows, ranks = like.shape[place.dim], like.device_mesh.size()
    low = min(rows, -(-rows // ranks) * like.device_mesh.get_local_rank())
    return tensor.detach().narrow(place.dim, low, part_of(like).shape[place.dim])


@torch.no_grad()
def copy_into(tensor: Tensor, source: Tensor) -> None:
    """Values, whichever of the two is sharded. Called by all ranks where the source alone is."""
    if isinstance(source, DTensor) and not isinstance(tensor, DTensor):
        source = whole_of(source)
    part_of(tensor).copy_(cut(source, tensor))


def gathered(groups: Named) -> Groups:
    """Whole tensors on the host of rank 0, one after the other; nothing on the others. Called by all ranks."""
    first = dist.get_rank() == 0
    copies: Groups = {name: {} for name in groups} if first else {}
    for group, tensors in groups.items():
        for name, value in tensors.items():
            whole = whole_of(value)
            if first:
                copies[group][name] = whole.cpu().clone()
    return copies


def dealt(groups: Named, like: Named, mesh: DeviceMesh) -> Groups:
    """Inverse of `gathered`: what rank 0 has goes to all, and what is sharded in `like` is cut as it comes.

    Those that are not there are whole. One tensor at a time is on a device beside the parts.
    """
    listed = [
        [group, name, str(value.dtype).removeprefix("torch."), list(value.shape)]
        for group, tensors in groups.items() for name, value in tensors.items()
    ]  # fmt: skip
    listed = _from_first(listed, mesh)
    parts: Groups = {}
    for group, name, dtype, shape in listed:
        if dist.get_rank() == 0:
            value = groups[group][name].detach().to(mesh.device_type).contiguous()
        else:
            value = torch.empty(shape, dtype=getattr(torch, dtype), device=mesh.device_type)
        if value.numel():
            dist.broadcast(value.view(-1).view(torch.uint8), 0, group=mesh.get_group())
        own = like.get(group, {}).get(name)
        tensors = parts.setdefault(group, {})
        tensors[name] = value if not isinstance(own, DTensor) else as_part(cut(value, own).clone(), own)
    return parts


def _from_first(value: Any, mesh: DeviceMesh) -> Any:
    """JSON of rank 0."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(mesh.device_type)
    length = torch.tensor([text.numel()], device=mesh.device_type)
    dist.broadcast(length, 0, group=mesh.get_group())
    text = text if dist.get_rank() == 0 else text.new_empty(int(length))
    dist.broadcast(text, 0, group=mesh.get_group())
    return json.loads(text.cpu().numpy().tobytes())
