"""Learners of a denoiser of which each rank holds a share."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.finetune.sharded import AmongRanks, Sharded
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.learners import FullLearner, LoraLearner
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.pipelines.ways import GUIDED, UNGUIDED, Key
from pgraft_fast.ranks.sharded import blocks_of, is_sharded, shard
from pgraft_fast.ranks.turns import Turns


class _OneCall(AmongRanks):
    """Ranks call a network that they share equally often: row by row, where rows of other prompts are other calls."""

    def most_rows(self) -> int:
        """See `Learner.most_rows`."""
        models: Any = self.run, self.sampled
        return super().most_rows() if all(model.one_call for model in models) else 1


class ShardedLoraLearner(_OneCall, LoraLearner):
    """A LoRA in training on a sharded base; every rank has the LoRA, its moments and its average.

    A LoRA is a hundredth of the base and less: its gradients are added up once a step, where a share of it would be
    put together, in 32 bits beside the base's 16, in each call of each block. mesh: see `shard`. Others: see
    `LoraLearner`. Raises InputError where the pipeline runs in its own loop.
    """

    def __init__(
        self, denoiser: Driven, settings: TrainSettings, lora: Lora, seed: int, mesh: DeviceMesh, way: Key | None = None
    ) -> None:
        check_shardable(denoiser)
        self.mesh = mesh
        super().__init__(denoiser, settings, lora, seed, way)
        if not is_sharded(denoiser.net):
            kept = [weight for name, weight in denoiser.net.named_parameters() if ".lora_" in f".{name}"]
            shard(denoiser.net, mesh, whole=kept, blocks=blocks_of(denoiser.net, kept, trial_of(denoiser)))


class ShardedFullLearner(_OneCall, Sharded, FullLearner):
    """All weights of the denoiser in training, which are sharded, as those of the reference are. Raises InputError
    where the pipeline runs in its own loop.
    """

    def __init__(self, denoiser: Driven, settings: TrainSettings, mesh: DeviceMesh, way: Key | None = None) -> None:
        check_shardable(denoiser)
        self.mesh = mesh
        super().__init__(denoiser, settings, way)

    def _network(self, model: Any) -> Any:
        return model.net

    def _trial(self, model: Any) -> Callable[[], object]:
        return trial_of(model)


def take_turns(turns: Turns, *models: Driven) -> None:
    """Their networks may be called unequally often by the ranks while the turns are open."""
    for model in models:
        turns.add(model.net, trial_of(model))


def trial_of(model: Driven) -> Callable[[], object]:
    """What calls its network for one row, without guidance and with."""
    facts = model.facts
    device = facts.guided.state.device
    x, t = torch.zeros(1, *facts.shape, device=device), torch.full((1,), facts.begin, device=device)
    first = torch.zeros(1, dtype=torch.int64, device=device)
    return lambda: [model.like(way=way)(x, t, first) for way in (UNGUIDED, GUIDED)]


def check_shardable(denoiser: Driven) -> None:
    """Raise InputError unless a call of the model is a call of its network, on rows of any prompts."""
    why = next((text for text in denoiser.why.values() if text is not None), None)
    if why is not None:
        raise InputError(
            f"{type(denoiser.facts.pipe).__name__} runs in its own loop, whose network cannot be sharded: {why}; "
            "keep it whole on each rank"
        )
