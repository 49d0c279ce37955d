"""Whether the ranks of a run share its networks: shard = "always", or "auto" where one of them holds too much alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from pgraft_fast.runs.pipeline_settings import PipelineRunSettings as Run

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from pgraft_fast.ranks.holding import Holding


Holdings = Callable[[int, bool], "Holding"]


def mesh_for(config: Run, net: nn.Module, held: Holdings, log: Callable[[str], None]) -> "DeviceMesh | None":
    """Over which a denoiser is sharded; None where each rank holds all of it. Called by all ranks. held: see
    `holdings`. log: told of it.
    """
    if config.shard == "never" or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    # They take a second to load.
    from pgraft_fast.ranks.holding import sharding_of
    from pgraft_fast.ranks.sharded import mesh_of

    size, device = dist.get_world_size(), next(net.parameters()).device
    if not sharding_of(config.shard, held(1, False), _free(net, device), size):
        return None
    log(f"shard = {config.shard!r}: {held(size, True)}")
    return mesh_of(device)


def holdings(config: Run, net: nn.Module) -> Holdings:
    """(ranks, sharded) -> what each of them would hold; net: without LoRAs, which are a hundredth of it and less."""
    from pgraft_fast.ranks.holding import holding_full, holding_lora
    from pgraft_fast.ranks.sharded import skeleton

    averages, blank = 2 if config.train.frozen == "ema" else 1, skeleton(net)
    if config.lora.rank == 0:
        return lambda ranks, sharded: holding_full(blank, ranks, sharded=sharded, averages=averages)
    return lambda ranks, sharded: holding_lora(blank, [], ranks, sharded=sharded, averages=averages)


def _free(net: nn.Module, device: torch.device) -> float:
    """Bytes of the fullest rank's card, its network not counted; without end on a CPU."""
    if device.type != "cuda":
        return float("inf")
    free = torch.tensor(torch.cuda.mem_get_info(device)[0] + sum(weight.nbytes for weight in net.parameters()))
    dist.all_reduce(free, dist.ReduceOp.MIN)
    return float(free)
