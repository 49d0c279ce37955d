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


@settings(max_examples=150)
@given(setup=BY_KIND["ddim"])
def test_ddim(setup):
    check_parity(setup)


@settings(max_examples=150)
@given(setup=BY_KIND["ddpm"])
def test_ddpm(setup):
    check_parity(setup)


@settings(max_examples=150)
@given(setup=BY_KIND["euler"])
def test_euler(setup):
    check_parity(setup)


@settings(max_examples=200)
@given(setup=BY_KIND["dpm"])
def test_dpm_solver(setup):
    check_parity(setup)


@settings(max_examples=120)
@given(setup=BY_KIND["flow"])
def test_flow_euler(setup):
    check_parity(setup)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", BY_KIND)
def test_half(kind, name):
    @settings(max_examples=25)
    @given(setup=BY_KIND[kind])
    def check(setup):
        check_half(setup, name)

    check()


def test_half_where_large_weights_cancel():
    """Weights of -180 and 114 for the two x_0 before, at the third order's last step."""
    config = {
        "solver_order": 3, "prediction_type": "sample", "lower_order_final": False, "use_beta_sigmas": True,
        "beta_schedule": "squaredcos_cap_v2",
    }  # fmt: skip
    setup = Setup("dpm", config, {"num_inference_steps": 5}, start=("timestep", 1))
    for name in ("bfloat16", "float16"):
        check_half(setup, name)
