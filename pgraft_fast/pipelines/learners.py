"""What is trained of a denoiser: a LoRA, or all its weights."""

from typing import Any

import torch
from torch import Tensor

from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.loras import Adapters, Lora, inject, named
from pgraft_fast.pipelines.ways import UNGUIDED, Key

TUNED, EMA, FROZEN = "tuned", "ema", "frozen"


class LoraLearner(Learner):
    """A LoRA in training, another one that follows it (`ema`), on one frozen network. reference: with neither. Where
    rounds start from the averaged weights, a third one keeps these.

    seed: of the LoRA's first weights. way: in which the averaged weights are called in sampling, default the
    denoiser's. Raises InputError where no layer has a target's name.
    """

    def __init__(
        self, denoiser: Driven, settings: TrainSettings, lora: Lora, seed: int, way: Key | None = None
    ) -> None:
        net: Any = denoiser.net.requires_grad_(False)
        followers = (EMA, FROZEN) if settings.frozen == "ema" else (EMA,)
        inject(net, lora, seed, (TUNED, *followers))
        values, averages = named(net, TUNED), named(net, EMA)
        with torch.no_grad():
            # Small weights move by less than 16 bits can tell.
            for weight in values.values():
                weight.data = weight.data.to(torch.float32)
            for follower in followers:
                for name, weight in named(net, follower).items():
                    weight.data = values[name].data.clone()
        adapters = denoiser.adapters = Adapters(net, TUNED)
        self.reference = denoiser.like()
        self.model = denoiser.like(way=UNGUIDED, adapter=TUNED)
        self.ema = denoiser.like(adapter=EMA, way=way, samples=True)
        self._start(values, averages, settings)
        self.sampled = denoiser.like(adapter=TUNED)
        self.frozen = denoiser.like(way=UNGUIDED)
        self.averaged = denoiser.like(way=UNGUIDED, adapter=EMA)
        adapters.use(None)
        for weight in averages.values():
            weight.requires_grad_(False)

    def freeze(self) -> None:
        """See `Learner.freeze`."""
        model: Any = self.model
        with torch.no_grad():
            for name, weight in named(model.net, FROZEN).items():
                weight.copy_(self._averages.by_name[name])
        self.frozen = model.like(adapter=FROZEN)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """See `Learner.weights`; of the LoRAs alone."""
        return {"model": dict(self._masters.by_name), "ema": dict(self._averages.by_name)}

    def load_weights(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Inverse of `weights`."""
        with torch.no_grad():
            for own, saved in ((self._masters, tensors["model"]), (self._averages, tensors["ema"])):
                for name, weight in own.by_name.items():
                    weight.copy_(saved[name])


class FullLearner(Learner):
    """All weights of the denoiser in training. way: see `LoraLearner`."""

    def __init__(self, denoiser: Driven, settings: TrainSettings, way: Key | None = None) -> None:
        denoiser.net.requires_grad_(False)
        super().__init__(denoiser, settings)
        self.reference = denoiser
        model: Any = self.model
        ema: Any = self.ema
        self.run = model.like(way=UNGUIDED)
        self.averaged = ema.like(way=UNGUIDED)
        self.ema = ema.like(way=way)
        self.frozen = denoiser.like(way=UNGUIDED)

    def freeze(self) -> None:
        """See `Learner.freeze`."""
        super().freeze()
        start: Any = self._start_of_round
        self.frozen = start.like(way=UNGUIDED)
