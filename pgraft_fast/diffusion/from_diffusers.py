"""The border with diffusers: its scheduler configs read as noise laws and parameterizations.

Works on plain dicts, so diffusers need not be installed. Only the noise law is taken over; which times a
pipeline's scheduler visits is that scheduler's own affair.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion.noise_laws import Edm, LinearFlow, NoiseLaw, Table
from pgraft_fast.errors import InputError

_PARAMETERIZATION_OF = {
    "epsilon": "epsilon",
    "sample": "x_0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


def noise_law_from_diffusers(scheduler: Any, shift: float | None = None) -> NoiseLaw:
    """See `Schedule.from_diffusers`."""
    config = _config(scheduler)
    name = str(config.get("_class_name", type(scheduler).__name__))
    if _is_flow(config, name):
        return _flow(config, name, shift)
    # The config of a scheduler made in code does not name its class; these keys do.
    if name.startswith("EDM") or {"rho", "sigma_max"} <= set(config):
        if config.get("sigma_schedule", "karras") != "karras":
            raise InputError(f"{name}: sigma_schedule={config['sigma_schedule']!r} is not supported; use 'karras'")
        return Edm(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), config.get("rho", 7.0))
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        table = torch.cumprod(1.0 - _betas(config, name), dim=0)
    return Table.of_alphas_cumprod(table)


def parameterization_from_diffusers(scheduler: Any) -> str:
    """What the network of this scheduler predicts: epsilon, v, x_0 or velocity."""
    config = _config(scheduler)
    name = str(config.get("_class_name", type(scheduler).__name__))
    default = "flow_prediction" if _is_flow(config, name) else "epsilon"
    kind = config.get("prediction_type", default)
    if kind not in _PARAMETERIZATION_OF:
        known = ", ".join(_PARAMETERIZATION_OF)
        raise InputError(f"{name}: prediction_type={kind!r} is not supported; known: {known}")
    return _PARAMETERIZATION_OF[kind]


def _config(scheduler: Any) -> Mapping[str, Any]:
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InputError(f"from_diffusers needs a scheduler, its config or a dict, got {type(scheduler).__name__}")
    return config


def _is_flow(config: Mapping[str, Any], name: str) -> bool:
    return (
        name.startswith("FlowMatch")
        or ("shift" in config and "beta_schedule" not in config)
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def _flow(config: Mapping[str, Any], name: str, shift: float | None) -> LinearFlow:
    if config.get("invert_sigmas"):
        raise InputError(f"{name}: invert_sigmas=True is not supported (its time runs the other way)")
    if shift is None and config.get("use_dynamic_shifting"):
        raise InputError(f"{name}: use_dynamic_shifting depends on the picture's size; pass shift=")
    if shift is None:
        shift = config.get("shift", config.get("flow_shift", 1.0))
    return LinearFlow(float(shift))


def _betas(config: Mapping[str, Any], name: str) -> Tensor:
    trained = config.get("trained_betas")
    betas = torch.as_tensor(trained, dtype=torch.float64) if trained is not None else _named_betas(config, name)
    return _rescaled_to_zero_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def _named_betas(config: Mapping[str, Any], name: str) -> Tensor:
    kind = config.get("beta_schedule")
    steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start
    raise InputError(
        f"{name}: beta_schedule={kind!r} is not supported; known: linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    )


def _rescaled_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) to end at 0 (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    alpha = torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))
    return 1.0 - alpha
