"""What is trained of a denoiser: a LoRA, or all its weights."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.finetune.training import Learner
from pgraft_fast.schema import Name, Positive, Settings
from pgraft_fast.text_to_image.denoiser import Adapters, named

TUNED, EMA, FROZEN = "tuned", "ema", "frozen"
# Quantised ones are subclasses.
_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHOWN = 4
# Names of the projections of attention in the models of diffusers.
ATTENTION = (("to_q", "to_k", "to_v", "to_out.0", "to_out"), ("to_query", "to_key", "to_value", "out_layer"))


class LoraSettings(Settings):
    """rank: of the LoRA, 0 trains all weights. alpha: scale is alpha / rank; default the rank. targets: ends of the
    names of the layers that get one.
    """

    rank: int = Field(default=16, ge=0, le=2**14)
    alpha: Positive | None = None
    targets: list[Name] = Field(default=["to_q", "to_k", "to_v", "to_out.0"], min_length=1)


class OnNetwork(Protocol):
    """A model of which several share a network. guidance: on which side of it, by whatever measure the model has."""

    net: nn.Module
    adapters: Adapters | None

    @property
    def unguided(self) -> Any:
        """`guidance` of training."""

    def like(self, *, guidance: Any = None, adapter: str | None = None) -> Any:
        """Another on the same network, by default with the same LoRA and guidance."""


class LoraLearner(Learner):
    """A LoRA in training, another one that follows it (`ema`), on one frozen network. reference: with neither. Where
    rounds start from the averaged weights, a third one keeps these.

    seed: of the LoRA's first weights. guidance: of the averaged weights in sampling, default the denoiser's. Raises
    InputError where no layer has a target's name.
    """

    def __init__(
        self, denoiser: OnNetwork, settings: TrainSettings, lora: LoraSettings, seed: int, guidance: Any = None
    ) -> None:
        net: Any = denoiser.net.requires_grad_(False)
        followers = (EMA, FROZEN) if settings.frozen == "ema" else (EMA,)
        _inject(net, lora, seed, followers)
        values, averages = named(net, TUNED), named(net, EMA)
        with torch.no_grad():
            # Small weights move by less than 16 bits can tell.
            for weight in values.values():
                weight.data = weight.data.to(torch.float32)
            for one in followers:
                for name, weight in named(net, one).items():
                    weight.data = values[name].data.clone()
        adapters = denoiser.adapters = Adapters(net, TUNED)
        self.reference = denoiser.like()
        self.model = denoiser.like(guidance=denoiser.unguided, adapter=TUNED)
        self.ema = denoiser.like(adapter=EMA, guidance=guidance)
        self._start(values, averages, settings)
        self.sampled = denoiser.like(adapter=TUNED)
        self.frozen = denoiser.like(guidance=denoiser.unguided)
        self.averaged = denoiser.like(guidance=denoiser.unguided, adapter=EMA)
        adapters.use(None)
        for weight in averages.values():
            weight.requires_grad_(False)

    def freeze(self) -> None:
        """See `Learner.freeze`."""
        model: Any = self.model
        with torch.no_grad():
            for name, weight in named(model.net, FROZEN).items():
                weight.copy_(self._averages[name])
        self.frozen = model.like(adapter=FROZEN)

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
    """All weights of the denoiser in training. guidance: see `LoraLearner`."""

    def __init__(self, denoiser: Any, settings: TrainSettings, guidance: Any = None) -> None:
        denoiser.net.requires_grad_(False)
        super().__init__(denoiser, settings)
        self.reference = denoiser
        model: Any = self.model
        ema: Any = self.ema
        self.run = model.like(guidance=denoiser.unguided)
        self.averaged = ema.like(guidance=denoiser.unguided)
        self.ema = ema.like(guidance=guidance)
        self.frozen = denoiser.like(guidance=denoiser.unguided)

    def freeze(self) -> None:
        """See `Learner.freeze`."""
        super().freeze()
        start: Any = self._start_of_round
        self.frozen = start.like(guidance=start.unguided)


def _inject(net: Any, lora: LoraSettings, seed: int, followers: Sequence[str]) -> None:
    from peft import LoraConfig

    if getattr(net, "peft_config", None):
        raise InputError(f"{type(net).__name__} has a LoRA already ({', '.join(net.peft_config)}); unload it first")
    _check_targets(net, lora.targets)
    make: Any = LoraConfig
    config = make(
        r=lora.rank, lora_alpha=lora.rank if lora.alpha is None else lora.alpha, target_modules=list(lora.targets),
        init_lora_weights="gaussian",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            add_adapter(net, config, TUNED)
        except (ValueError, TypeError, NotImplementedError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"lora: {type(net).__name__} takes none of rank {lora.rank} there: {text}") from error
    with warnings.catch_warnings():
        # peft warns of a second LoRA, which is meant.
        warnings.simplefilter("ignore", UserWarning)
        for name in followers:
            add_adapter(net, config, name)


def add_adapter(net: Any, config: Any, name: str) -> None:
    """To a model of diffusers; some have no method for it."""
    if hasattr(net, "add_adapter"):
        net.add_adapter(config, adapter_name=name)
        return
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, net, name)


def default_targets(net: nn.Module) -> list[str]:
    """The projections of attention by whatever names they have. Raises InputError where none is found."""
    modules = dict(net.named_modules())
    for known in ATTENTION:
        named = {end: [module for name, module in modules.items() if f".{name}".endswith(f".{end}")] for end in known}
        # Some models have a layer and a list of layers under one name.
        found = [end for end, of_name in named.items() if of_name and all(isinstance(one, _LAYERS) for one in of_name)]
        if len(found) > 1:
            return found
    raise InputError(f"lora.targets: {type(net).__name__} has no attention of known names; name its layers")


def _check_targets(net: nn.Module, targets: list[str]) -> None:
    """Raise InputError unless each is the end of names, and each layer of such a name has weights for a LoRA."""
    modules = dict(net.named_modules())
    for target in targets:
        named_so = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not named_so:
            raise InputError(f"lora.targets={targets}: no layer of {type(net).__name__} has the name {target!r}")
        for name in named_so:
            if isinstance(modules[name], _LAYERS):
                continue
            inside = [inner for inner, one in modules[name].named_modules() if isinstance(one, _LAYERS)]
            meant = f"; in it are {', '.join(f'{target}.{inner}' for inner in inside[:_SHOWN])}" if inside else ""
            more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
            raise InputError(
                f"lora.targets={targets}: {name} ({type(modules[name]).__name__}) takes no LoRA{meant}{more}"
            )
