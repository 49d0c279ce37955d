"""What is trained of a denoiser: a LoRA, or all its weights."""

import warnings
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.settings import Settings, TrainSettings
from pgraft_fast.finetune.training import Learner
from pgraft_fast.text_to_image.denoiser import Adapters, Denoiser, named

TUNED, EMA = "tuned", "ema"


class LoraSettings(Settings):
    """rank: of the LoRA, 0 trains all weights. alpha: scale is alpha / rank; default the rank. targets: ends of the
    names of the layers that get one.
    """

    rank: int = Field(default=16, ge=0)
    alpha: PositiveFloat | None = None
    targets: list[str] = Field(default=["to_q", "to_k", "to_v", "to_out.0"], min_length=1)


class LoraLearner(Learner):
    """A LoRA in training, another one that follows it (`ema`), on one frozen network. reference: with neither.

    seed: of the LoRA's first weights. Raises InputError where no layer has a target's name.
    """

    def __init__(self, denoiser: Denoiser, settings: TrainSettings, lora: LoraSettings, seed: int) -> None:
        net: Any = denoiser.net.requires_grad_(False)
        _inject(net, lora, seed)
        values, averages = named(net, TUNED), named(net, EMA)
        with torch.no_grad():
            for name, weight in averages.items():
                # Small weights move by less than 16 bits can tell.
                weight.data = values[name].data.to(torch.float32).clone()
                values[name].data = values[name].data.to(torch.float32)
        adapters = denoiser.adapters = Adapters(net, TUNED)
        self.reference = denoiser.like()
        self.model = denoiser.like(guidance=_unguided(denoiser), adapter=TUNED)
        self.ema = denoiser.like(adapter=EMA)
        self._start(values, averages, settings)
        self.sampled = denoiser.like(adapter=TUNED)
        adapters.use(None)
        for weight in averages.values():
            weight.requires_grad_(False)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """See `Learner.weights`; of the LoRAs alone."""
        return {"model": dict(self._values), "ema": dict(self._averages)}

    def load_weights(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Inverse of `weights`."""
        with torch.no_grad():
            for own, saved in ((self._values, tensors["model"]), (self._averages, tensors["ema"])):
                for name, weight in own.items():
                    weight.copy_(saved[name])


class FullLearner(Learner):
    """All weights of the denoiser in training."""

    def __init__(self, denoiser: Denoiser, settings: TrainSettings) -> None:
        denoiser.net.requires_grad_(False)
        super().__init__(denoiser, settings)
        self.reference = denoiser
        model: Any = self.model
        self.run = model.like(guidance=_unguided(denoiser))


def _unguided(denoiser: Denoiser) -> float:
    """An embedded scale is an input that the network always gets."""
    return denoiser.guidance if denoiser.kind.embedded_guidance else 1.0


def _inject(net: Any, lora: LoraSettings, seed: int) -> None:
    from peft import LoraConfig

    if not any(name.endswith(tuple(f".{target}" for target in lora.targets)) for name, _ in net.named_modules()):
        raise InputError(f"lora.targets={lora.targets}: no layer of {type(net).__name__} has such a name")
    make: Any = LoraConfig
    config = make(
        r=lora.rank, lora_alpha=lora.rank if lora.alpha is None else lora.alpha, target_modules=list(lora.targets),
        init_lora_weights="gaussian",
    )  # fmt: skip
    if getattr(net, "peft_config", None):
        raise InputError(f"{type(net).__name__} has a LoRA already ({', '.join(net.peft_config)}); unload it first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.add_adapter(config, adapter_name=TUNED)
    with warnings.catch_warnings():
        # peft warns of a second LoRA, which is meant.
        warnings.simplefilter("ignore", UserWarning)
        net.add_adapter(config, adapter_name=EMA)
