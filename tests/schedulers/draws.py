"""Drawn configurations of the five schedulers: every option, mostly such that diffusers takes them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from schedulers.twins import Setup

_BETAS = [0.0001, 0.0005, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2]
_SPACINGS = st.sampled_from(["leading", "trailing", "linspace"])
_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_STEPS = st.sampled_from([1, 2, 3, 4, 5, 7, 10, 14, 15, 20])
_SHIFTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@st.composite
def _noise_schedule(draw: Any, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Betas, spacing and offset. more: schedules beside the common three."""
    name = draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "trained", *more]))
    config = {
        "timestep_spacing": draw(_SPACINGS),
        "steps_offset": draw(st.sampled_from([0, 1])),
        "rescale_betas_zero_snr": draw(st.integers(0, 3)) == 3,
    }
    if name == "trained":
        config["trained_betas"] = draw(st.sampled_from([_BETAS, np.linspace(1e-4, 0.3, 30)]))
        config["num_train_timesteps"] = len(config["trained_betas"])
        return config
    config |= {"beta_schedule": name, "num_train_timesteps": draw(st.sampled_from([100, 1000]))}
    if draw(st.booleans()):
        config |= {"beta_start": 0.00085, "beta_end": 0.012}
    return config


@st.composite
def _threshold(draw: Any) -> dict[str, Any]:
    return {
        "thresholding": True,
        "dynamic_thresholding_ratio": draw(st.sampled_from([0.0, 0.5, 0.8, 0.995, 1.0])),
        "sample_max_value": draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])),
    }


@st.composite
def _limits(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "clip", "threshold"]))
    config = {"clip_sample": kind == "clip", "clip_sample_range": draw(st.sampled_from([0.5, 1.0, 2.0]))}
    return config | (draw(_threshold()) if kind == "threshold" else {})


@st.composite
def _way(draw: Any, index: bool, given: bool = False) -> dict[str, Any]:
    """How the trajectory is run. index: whether the scheduler has set_begin_index; given: variance_noise."""
    starts = [None, None, None, ("timestep", 1), ("timestep", 6)] + ([("index", 0), ("index", 3)] if index else [])
    return {
        "generator": draw(st.sampled_from(["one", "list", "global"] + (["given"] if given else []))),
        "start": draw(st.sampled_from(starts)),
        "feed": draw(st.sampled_from(["view", "view", "number", "foreign", "line"])),
        "return_dict": draw(st.booleans()),
    }


def _steps(draw: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Not more than there are; DPM-Solver needs one more."""
    return {"num_inference_steps": min(draw(_STEPS), config.get("num_train_timesteps", 1000) - 1)}


def _one_of(draw: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """One of these options in half of the cases, or none."""
    name = draw(st.sampled_from([*names, *[None] * len(names)]))
    return {} if name is None else {name: True}


@st.composite
def ddim(draw: Any) -> Setup:
    config = draw(_noise_schedule()) | draw(_limits())
    config |= {"prediction_type": draw(st.sampled_from(_PREDICTIONS)), "set_alpha_to_one": draw(st.booleans())}
    options = {"eta": draw(st.sampled_from([0.0, 0.3, 1.0])), "use_clipped_model_output": draw(st.booleans())}
    return Setup("ddim", config, _steps(draw, config), options, **draw(_way(index=False, given=True)))


@st.composite
def ddpm(draw: Any) -> Setup:
    config = draw(_noise_schedule(more=("sigmoid", "laplace"))) | draw(_limits())
    kinds = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
    config |= {
        "prediction_type": draw(st.sampled_from(_PREDICTIONS)),
        "variance_type": draw(st.sampled_from(kinds)),
    }
    schedule = _steps(draw, config)
    if draw(st.integers(0, 4)) == 4:
        top = config["num_train_timesteps"]
        schedule = {"timesteps": [int(top * share) for share in (0.9, 0.7, 0.3, 0.1)]}
    return Setup("ddpm", config, schedule, {}, **draw(_way(index=False)))


@st.composite
def euler(draw: Any) -> Setup:
    config = draw(_noise_schedule()) | _one_of(draw, _SHIFTED)
    config |= {
        "prediction_type": draw(st.sampled_from((*_PREDICTIONS, "original_sample"))),
        "interpolation_type": draw(st.sampled_from(["linear", "linear", "log_linear"])),
        "timestep_type": draw(st.sampled_from(["discrete", "continuous"])),
        "final_sigmas_type": draw(st.sampled_from(["zero", "sigma_min"])),
    }
    if draw(st.booleans()):
        config |= {"sigma_min": 0.05, "sigma_max": 12.0}
    schedule = _steps(draw, config)
    kind = draw(st.sampled_from(["steps", "steps", "steps", "timesteps", "sigmas"]))
    if kind == "timesteps" and not any(config.get(name) for name in _SHIFTED):
        schedule = {"timesteps": [int(config["num_train_timesteps"] * share) for share in (0.95, 0.6, 0.3, 0.1)]}
    if kind == "sigmas":
        schedule = {"sigmas": [14.0, 5.0, 1.3, 0.7, 0.1, 0.0]}
    options = {}
    if draw(st.booleans()):
        options = {
            "s_churn": draw(st.sampled_from([0.1, 2.0, 40.0])),
            "s_tmin": draw(st.sampled_from([0.0, 0.7])),
            "s_tmax": draw(st.sampled_from([float("inf"), 5.0])),
            "s_noise": draw(st.sampled_from([0.9, 1.0, 1.003])),
        }
    return Setup("euler", config, schedule, options, **draw(_way(index=True)))


@st.composite
def dpm(draw: Any) -> Setup:
    config = draw(_noise_schedule()) | _one_of(draw, (*_SHIFTED, "use_lu_lambdas", "use_flow_sigmas"))
    algorithm = draw(st.sampled_from(["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]))
    data = algorithm.endswith("++")
    config |= {
        "algorithm_type": algorithm,
        "solver_order": draw(st.sampled_from([1, 2, 3])),
        "solver_type": draw(st.sampled_from(["midpoint", "heun"])),
        # The others are not defined: see test_input.
        "prediction_type": draw(st.sampled_from(_PREDICTIONS + (("flow_prediction",) if data else ()))),
        "lower_order_final": draw(st.booleans()),
        "euler_at_final": draw(st.booleans()),
        "final_sigmas_type": draw(st.sampled_from(["zero", "sigma_min"])) if data else "sigma_min",
        "lambda_min_clipped": draw(st.sampled_from([-float("inf"), -5.1])),
    }
    if algorithm == "sde-dpmsolver":
        config["solver_order"] = min(config["solver_order"], 2)
    if config["prediction_type"] == "epsilon":
        config["variance_type"] = draw(st.sampled_from([None, "learned", "learned_range"]))
    if draw(st.integers(0, 3)) == 3:
        config |= draw(_threshold())
    schedule = _steps(draw, config)
    if config.get("use_flow_sigmas"):
        config["flow_shift"] = draw(st.sampled_from([1.0, 3.0]))
        if draw(st.booleans()):
            config["use_dynamic_shifting"] = True
            schedule["mu"] = draw(st.sampled_from([0.5, 1.15]))
    elif not any(config.get(name) for name in (*_SHIFTED, "use_lu_lambdas")) and draw(st.integers(0, 3)) == 3:
        top = config["num_train_timesteps"]
        schedule = {"timesteps": [int(top * share) for share in (0.95, 0.8, 0.6, 0.4, 0.2, 0.1)]}
    return Setup("dpm", config, schedule, {}, **draw(_way(index=True, given=True)))


@st.composite
def flow(draw: Any) -> Setup:
    config = _one_of(draw, _SHIFTED) | {
        "num_train_timesteps": draw(st.sampled_from([100, 1000])),
        "shift": draw(st.sampled_from([0.5, 1.0, 3.0])),
        "shift_terminal": draw(st.sampled_from([None, None, 0.02])),
        "invert_sigmas": draw(st.integers(0, 3)) == 3,
        "stochastic_sampling": draw(st.booleans()),
    }
    kind = draw(st.sampled_from(["steps", "steps", "steps", "timesteps", "sigmas", "both"]))
    sigmas = [1.0, 0.8, 0.55, 0.3, 0.1]
    schedule: dict[str, Any] = {} if kind != "steps" else _steps(draw, config)
    if kind in {"sigmas", "both"}:
        schedule["sigmas"] = sigmas
    if kind in {"timesteps", "both"}:
        schedule["timesteps"] = [1000.0 * sigma for sigma in sigmas]
    if draw(st.booleans()):
        config |= {"use_dynamic_shifting": True, "time_shift_type": draw(st.sampled_from(["exponential", "linear"]))}
        schedule["mu"] = draw(st.sampled_from([0.5, 1.15]))
    way = draw(_way(index=True))
    options = {"s_churn": 1.0, "s_noise": 1.1} if draw(st.booleans()) else {}
    return Setup("flow", config, schedule, options, **way)


BY_KIND = {"ddim": ddim(), "ddpm": ddpm(), "euler": euler(), "dpm": dpm(), "flow": flow()}
