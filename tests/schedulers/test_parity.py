"""Drawn configurations: our classes give the states, x_0 and draws of diffusers' own, and raise where it raises."""

import pytest
from hypothesis import given, settings
from schedulers.draws import BY_KIND
from schedulers.twins import Setup, check_half, check_parity

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Of diffusers' own NumPy calls.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:diffusers"),
]


def drawn(kind, examples, check):
    settings(max_examples=examples)(given(setup=BY_KIND[kind])(check))()


# DPM-Solver's order turns on the exact number of steps, which few examples meet.
EXAMPLES = {kind: 200 if kind == "dpm" else 60 for kind in BY_KIND}
MORE = [pytest.param(kind, 200, marks=pytest.mark.faults) for kind in BY_KIND if kind != "dpm"]


@pytest.mark.parametrize(("kind", "examples"), [*EXAMPLES.items(), *MORE])
def test_float32(kind, examples):
    def check(setup):
        check_parity(setup)

    drawn(kind, examples, check)


@pytest.mark.parametrize("examples", [10, pytest.param(25, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", BY_KIND)
def test_half(kind, name, examples):
    def check(setup):
        check_half(setup, name)

    drawn(kind, examples, check)


def test_half_where_large_weights_cancel():
    """Weights of -180 and 114 for the two x_0 before, at the third order's last step."""
    config = {
        "solver_order": 3, "prediction_type": "sample", "lower_order_final": False, "use_beta_sigmas": True,
        "beta_schedule": "squaredcos_cap_v2",
    }  # fmt: skip
    setup = Setup("dpm", config, {"num_inference_steps": 5}, start=("timestep", 1))
    for name in ("bfloat16", "float16"):
        check_half(setup, name)
