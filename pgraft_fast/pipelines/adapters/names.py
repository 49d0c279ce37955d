"""Names of LoRA tensors: in peft, in diffusers' files, and in the files of kohya-ss, ComfyUI and A1111."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError

Tensors = dict[str, Tensor]

_KOHYA = "lora_unet_"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Two layers of SDXL that diffusers finds again under their original names only; the others know both.
_ORIGINAL = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}


def prefix_of(denoiser: Any) -> str:
    """What the denoiser is called in a pipeline, and its tensors in a file: "unet" or "transformer"."""
    return "unet" if "UNet" in type(denoiser).__name__ else "transformer"


def to_kohya(tensors: Tensors, denoiser: Any, adapter_name: str) -> Tensors:
    """The tensors of a peft adapter, {"to_q.lora_A.weight": ...}, as other tools read them.

    UNet: lora_unet_<module with _ for .>.lora_down.weight, .lora_up.weight and .alpha, which ComfyUI and A1111 read
    for Stable Diffusion 1, 2 and XL. Transformers: diffusers' own names, which ComfyUI reads for SD3 and Flux. What
    alpha / rank cannot say there is in the second matrix.
    Raises InputError for what is no plain LoRA.
    """
    other = [name for name in tensors if not name.endswith((_DOWN, _UP))]
    if other:
        raise InputError(f"format='kohya' has plain LoRA only, this adapter has {other[0]}: save it as 'diffusers'")
    modules = dict(denoiser.named_modules())
    ranks = {name.removesuffix(_DOWN): down.shape[0] for name, down in tensors.items() if name.endswith(_DOWN)}
    alphas = {module: _alpha(modules[module], rank, adapter_name) for module, rank in ranks.items()}
    # Diffusers reads one alpha for all layers of a UNet's file.
    (common, _), *_ = Counter(alphas.values()).most_common(1)
    unet = prefix_of(denoiser) == "unet"
    renamed: Tensors = {}
    for module, rank in ranks.items():
        down, up = tensors[module + _DOWN], tensors[module + _UP]
        rest = alphas[module] / (common if unet else rank)
        up = up if rest == 1.0 else (up.float() * rest).to(up.dtype)
        if unet:
            name = _KOHYA + _flat(module)
            renamed |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            renamed[f"{name}.alpha"] = torch.tensor(common)
        else:
            renamed |= {f"transformer.{module}{_DOWN}": down, f"transformer.{module}{_UP}": up}
    return renamed


def to_peft(tensors: Tensors, config: dict[str, Any] | None, denoiser: Any) -> tuple[Tensors, dict[str, Any]]:
    """Tensors of a file in either format under peft's names, and the arguments of their LoraConfig.

    config: the one in the file, if it has one. Raises InputError for names of another model.
    """
    prefix = f"{prefix_of(denoiser)}."
    if not any(name.startswith(_KOHYA) for name in tensors):
        if foreign := [name for name in tensors if not name.startswith(prefix)]:
            raise InputError(f"{foreign[0]} is no layer of {type(denoiser).__name__}")
        renamed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        alphas = {name.removesuffix(_UP): float(up.shape[1]) for name, up in renamed.items() if name.endswith(_UP)}
        return renamed, _config(renamed, alphas) if config is None else config
    modules = {_flat(name): name for name in map(base_name, dict(denoiser.named_modules()))}
    renamed, alphas = {}, {}
    for name, tensor in tensors.items():
        flat, _, kind = name.removeprefix(_KOHYA).partition(".")
        if flat not in modules:
            raise InputError(f"{name} is no layer of {type(denoiser).__name__}")
        if kind == "alpha":
            alphas[modules[flat]] = tensor.item()
        else:
            renamed[modules[flat] + {"lora_down.weight": _DOWN, "lora_up.weight": _UP}.get(kind, kind)] = tensor
    return renamed, _config(renamed, alphas)


def check_fits(tensors: Tensors, weights: Tensors, model: str) -> None:
    """Raise InputError unless every LoRA layer has a base weight, {"to_q.weight": ...}, of its shape."""
    for name, tensor in tensors.items():
        if not name.endswith((_DOWN, _UP)):
            continue
        module = name.removesuffix(_DOWN).removesuffix(_UP)
        weight = weights.get(f"{module}.weight")
        if weight is None:
            raise InputError(f"{module} is no layer of {model}")
        have = weight.shape[1:] if name.endswith(_DOWN) else weight.shape[:1]
        want = tensor.shape[1:] if name.endswith(_DOWN) else tensor.shape[:1]
        if have != want:
            raise InputError(f"{module} of {model} has the shape {tuple(weight.shape)}, the adapter is for another")


def base_name(module: str) -> str:
    """The name of a module where no LoRA is around it."""
    return ".".join(part for part in module.split(".") if part != "base_layer")


def _alpha(layer: Any, rank: int, adapter_name: str) -> float:
    """Such that the layer's weight in the sum is alpha / rank."""
    alpha = float(layer.lora_alpha[adapter_name])
    return alpha * math.sqrt(rank) if layer.use_rslora.get(adapter_name, False) else alpha


def _flat(module: str) -> str:
    return _ORIGINAL.get(module, module.replace(".", "_"))


def _config(tensors: Tensors, alphas: dict[str, float]) -> dict[str, Any]:
    """A LoraConfig with the ranks of the tensors."""
    ranks = {name.removesuffix(_DOWN): down.shape[0] for name, down in tensors.items() if name.endswith(_DOWN)}
    alphas = {module: alphas.get(module, float(rank)) for module, rank in ranks.items()}
    (rank, _), *_ = Counter(ranks.values()).most_common(1)
    (alpha, _), *_ = Counter(alphas.values()).most_common(1)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{module}": r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{module}": a for module, a in alphas.items() if a != alpha},
        "target_modules": sorted(ranks),
    }
