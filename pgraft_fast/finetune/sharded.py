"""A model in training of which each rank holds a share, with its gradients, moments and averages."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor

from pgraft_fast.finetune.learner import FIRST_SCALE, Learner
from pgraft_fast.finetune.masters import Masters
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.ranks.parts import Groups, as_part, copy_into, cut, dealt, gathered, part_of
from pgraft_fast.ranks.sharded import blocks_of, called_in, copy_weights, fill, kept_whole, shard, skeleton


class ShardMasters(Masters):
    """This rank's parts of sharded weights as plain tensors in the same memory; other weights as in `Masters`.

    An optimiser, averages and moments work on the parts alone. Sharded weights in training have float32 parts.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> None:
        self.weights, self._mesh = dict(weights), mesh
        super().__init__({name: _part(weight) for name, weight in weights.items()})

    def forget_gradients(self) -> None:
        """Of the weights."""
        super().forget_gradients()
        for weight in self.weights.values():
            weight.grad = None

    def take_gradients(self) -> None:
        """From the weights, which have none then. Those of whole weights are added up over the ranks."""
        super().take_gradients()
        for name, weight in self.weights.items():
            if isinstance(weight, DTensor):
                self.by_name[name].grad = None if weight.grad is None else part_of(weight.grad)
                weight.grad = None
        gradients = [weight.grad for weight in self.whole() if weight.grad is not None]
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=self._mesh.get_group())
            for gradient, summed in zip(
                gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
            ):
                gradient.copy_(summed.view_as(gradient))

    def named(self) -> dict[str, Tensor]:
        """What is trained, by name, as the weights are sharded."""
        return {name: as_part(self.by_name[name], weight) for name, weight in self.weights.items()}

    def whole(self) -> list[nn.Parameter]:
        """Those that each rank has all of."""
        return [self.by_name[name] for name, weight in self.weights.items() if not isinstance(weight, DTensor)]

    def parts(self) -> list[nn.Parameter]:
        """Those that each rank has a part of."""
        return [self.by_name[name] for name, weight in self.weights.items() if isinstance(weight, DTensor)]


class AmongRanks(Learner):
    """What a learner does otherwise where a network is sharded; to be put before a learner in the bases of a class.

    What the losses of the ranks add up to is what is trained. `tensors` are this rank's parts, `gathered` is the same
    as of a learner on one rank, and `load` takes either.
    """

    sharded = True
    mesh: DeviceMesh
    _masters: ShardMasters
    _averages: ShardMasters

    @property
    def can_be_captured(self) -> bool:
        """Its steps wait for other ranks."""
        return False

    def tensors(self) -> Groups:
        """This rank's parts of everything that `load` needs to go on."""
        groups = super().tensors()
        likes = self._likes_of_moments(groups["optimizer"])
        groups["optimizer"] = {name: as_part(value, likes[name]) for name, value in groups["optimizer"].items()}
        return groups

    def alike(self) -> list[Tensor]:
        """See `Learner.alike`: what is whole."""
        return list(self._masters.whole())

    def gathered(self) -> Groups:
        """See `Learner.gathered`: whole on the host of rank 0, nothing on the others."""
        return gathered(self.tensors())

    def load(self, tensors: Groups, steps_done: int) -> None:
        """Inverse of `tensors` and of `gathered`: parts on all ranks, or on rank 0 what is whole."""
        if not self._are_parts(tensors):
            tensors = dealt(tensors, self._likes(), self.mesh)
        moments = tensors.get("optimizer", {})
        likes = self._likes_of_moments(moments)
        local = {name: cut(value, likes[name]) for name, value in moments.items()}
        super().load({**tensors, "optimizer": local}, steps_done)

    def _are_parts(self, tensors: Groups) -> bool:
        """On any rank, and so on all."""
        parts = any(isinstance(value, DTensor) for group in tensors.values() for value in group.values())
        return self._sum(torch.tensor(float(parts))).item() > 0

    def _likes(self) -> Groups:
        """What is loaded, by group and name, as it is sharded here."""
        moments: dict[str, Tensor] = {
            f"{index}.{name}": weight
            for index, weight in enumerate(self._masters.weights.values()) for name in ("exp_avg", "exp_avg_sq")
        }  # fmt: skip
        return {**self.weights(), "optimizer": moments}

    def _likes_of_moments(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How each is sharded; numbers of steps are not."""
        likes = self._likes()["optimizer"]
        return {name: likes.get(name, value) for name, value in moments.items()}

    def _kept(self, weights: dict[str, nn.Parameter]) -> Masters:
        return ShardMasters(weights, self.mesh)

    def _scaler_of(self, device: str) -> torch.amp.GradScaler | None:
        if super()._scaler_of(device) is None:
            return None
        return ShardedGradScaler(device, init_scale=FIRST_SCALE, process_group=self.mesh.get_group())

    def _clipped(self) -> Tensor:
        whole = [weight.grad for weight in self._masters.whole() if weight.grad is not None]
        parts = [weight.grad for weight in self._masters.parts() if weight.grad is not None]
        square = self._sum(nn.utils.get_total_norm(parts).square()) + nn.utils.get_total_norm(whole).square()
        norm = square.sqrt()
        nn.utils.clip_grads_with_norm_(self._masters.by_name.values(), self.settings.clip, norm)
        return norm

    def _sum(self, value: Tensor) -> Tensor:
        value = value.to(self.mesh.device_type)
        dist.all_reduce(value, group=self.mesh.get_group())
        return value


class Sharded(AmongRanks):
    """The same for a learner of all weights.

    Networks in training have float32 shares, which are the masters of 16-bit weights: a block is put together in its
    own dtype, its gradients are added up in float32. Weights of another dtype than most are kept whole.
    """

    _bones: Any = None
    _dtype = torch.float32
    _blocks: Sequence[str] = ()

    def weights(self) -> Groups:
        """See `Learner.weights`; parts."""
        return {
            "model": {**self.model.state_dict(), **self._masters.named()},
            "ema": {**self.ema.state_dict(), **self._averages.named()},
        }

    def load_weights(self, tensors: Groups) -> None:
        """Inverse of `weights`."""
        for name, model, kept in (("model", self.model, self._masters), ("ema", self.ema, self._averages)):
            for key, own in model.state_dict().items():
                copy_into(own, tensors[name][key])
            kept.load(tensors[name])

    def _network(self, model: Any) -> Any:
        """That of a model which is sharded."""
        return model

    def _trial(self, model: Any) -> Callable[[], object] | None:
        """Calls it, see `blocks_of`."""
        return None

    def _copied(self, model: Any, trained: bool = True) -> Any:
        source = self._network(model)
        if self._bones is None:
            self._bones, self._dtype = skeleton(model), called_in(source)
            self._blocks = blocks_of(source, call=self._trial(model))
            shard(source.requires_grad_(False), self.mesh, blocks=self._blocks)
        copied = copy.deepcopy(self._bones)
        net = self._network(copied)
        if trained:
            whole = kept_whole(net)
            for weight in net.parameters():
                if weight.dtype is self._dtype and weight.ndim:
                    weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            shard(net, self.mesh, whole=whole, compute=self._dtype, blocks=self._blocks)
        else:
            shard(net.requires_grad_(False), self.mesh, blocks=self._blocks)
        fill(net, source, self.mesh)
        return copied

    def _copy_weights(self, source: Any, target: Any) -> None:
        copy_weights(self._network(target), self._network(source))

    def _scaler_of(self, device: str) -> torch.amp.GradScaler | None:
        if self._dtype is not torch.float16:
            return super()._scaler_of(device)
        return ShardedGradScaler(device, init_scale=FIRST_SCALE, process_group=self.mesh.get_group())


class ShardedLearner(Sharded):
    """All weights of a network in training. The network itself, which is the reference, is sharded in place.

    call: calls it, see `blocks_of`; needed where it calls parts of its blocks.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, mesh: DeviceMesh, call: Callable[[], object] | None = None
    ) -> None:
        self.mesh, self._call = mesh, call
        super().__init__(model, settings)

    def _trial(self, model: Any) -> Callable[[], object] | None:
        return self._call


def _part(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(part_of(weight), weight.requires_grad) if isinstance(weight, DTensor) else weight
