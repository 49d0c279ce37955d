"""Solvers: order of convergence against exact solutions, identities among them, steps against diffusers."""

import diffusers
import pytest
import torch

from pgraft_fast.diffusion import Schedule, normal
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import SOLVERS, make_steps, model_evaluations, rollout

FLOW, VP, EDM = Schedule.linear_flow(), Schedule.vp_linear(), Schedule.edm()


def gaussian_model(schedule, std):
    """Exact x_0 prediction for data N(0, std^2)."""

    def model(x, t):
        alpha, sigma = (value[:, None] for value in schedule.alpha_sigma(t))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    return model


def gaussian_error(schedule, solver, steps, std=0.5, eta=None):
    """|numerical - exact| for the probability-flow ODE of N(0, std^2): x scales with sqrt(alpha^2 std^2 + sigma^2)."""
    ids = torch.arange(16)
    drawn = rollout(
        gaussian_model(schedule, std), schedule, shape=(1,), sample_ids=ids, steps=steps, solver=solver, eta=eta,
        parameterization="x_0", dtype=torch.float64,
    )  # fmt: skip
    alpha, sigma = schedule.alpha_sigma(1.0)
    x_1 = sigma * normal(0, ids, 0, (1,), dtype=torch.float64)
    exact = x_1 * std / torch.sqrt(alpha**2 * std**2 + sigma**2)
    return float((drawn.x_0 - exact).abs().max())


@pytest.mark.parametrize(
    ("schedule", "solver", "order"),
    [
        (FLOW, "euler", 1),
        (VP, "ddim", 1),
        (FLOW, "heun", 2),
        (EDM, "heun", 2),
        (EDM, "dpmpp_2m", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_order_of_convergence(schedule, solver, order):
    coarse, fine = (gaussian_error(schedule, solver, steps) for steps in (64, 256))
    assert coarse / fine > 0.7 * 4**order
    assert fine < 0.01


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_second_order_pays_where_the_last_step_limits_it(solver):
    """On variance-preserving schedules the last, first-order step to sigma = 0 sets the order."""
    assert gaussian_error(VP, solver, 64) < 0.2 * gaussian_error(VP, "ddim", 64)


def test_euler_is_ddim_without_noise():
    for schedule in (FLOW, VP, EDM):
        grid = schedule.grid(7)
        for euler, ddim in zip(
            make_steps(schedule, grid, "euler", "v", None), make_steps(schedule, grid, "ddim", "v", 0.0), strict=True
        ):
            assert euler == ddim


def test_ddpm_is_ddim_with_full_noise():
    grid = VP.grid(9)
    assert make_steps(VP, grid, "ddpm", "epsilon") == make_steps(VP, grid, "ddim", "epsilon", 1.0)


def test_euler_on_a_flow_is_x_plus_h_velocity():
    for step in make_steps(FLOW, FLOW.grid(5), "euler", "velocity"):
        # x_s = a x + b (p x + q v) = x + (s - t) v
        assert step.a + step.b * step.p == pytest.approx(1.0)
        assert step.b * step.q == pytest.approx(step.s - step.t)


def test_euler_on_edm_is_x_plus_h_epsilon():
    for step in make_steps(EDM, EDM.grid(5), "euler", "epsilon"):
        assert step.a + step.b * step.p == pytest.approx(1.0)
        assert step.b * step.q == pytest.approx(float(EDM.sigma(step.s) - EDM.sigma(step.t)))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_steps_are_those_of_diffusers(eta, kind):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    schedule = Schedule.from_diffusers(scheduler)
    name = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}[kind]
    steps = make_steps(schedule, schedule.grid(10), "ddim", name, eta)
    generator = torch.Generator().manual_seed(0)
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        assert step.t * 1000 - 1 == pytest.approx(int(timestep))
        x, out, noise = torch.randn(3, 4, 8, generator=generator)
        expected = scheduler.step(out, timestep, x, eta=eta, variance_noise=noise if eta else None).prev_sample
        ours = step.a * x + step.b * (step.p * x + step.q * out) + step.d * noise
        # Diffusers keeps its table in float32: alpha of the last steps is good to 1e-3 of sigma.
        assert torch.allclose(ours, expected, atol=2e-3, rtol=2e-3)


def test_multistep_steps_are_those_of_diffusers():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(10)
    schedule = Schedule.from_diffusers(scheduler)
    steps = make_steps(schedule, schedule.grid(10), "dpmpp_2m", "epsilon")
    generator = torch.Generator().manual_seed(0)
    x = x_theirs = torch.randn(4, 8, generator=generator)
    previous = torch.zeros_like(x)
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        out = torch.randn(4, 8, generator=generator)
        x_0 = step.p * x + step.q * out
        x, previous = step.a * x + step.b * x_0 + step.c * previous, x_0
        x_theirs = scheduler.step(out, timestep, x_theirs).prev_sample
        assert torch.allclose(x, x_theirs, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_last_step_gives_the_predicted_x_0(solver):
    last = make_steps(VP, VP.grid(6), solver, "v")[-1]
    assert (last.a, last.b, last.c, last.d) == (0.0, 1.0, 0.0, 0.0)


def test_evaluations():
    assert model_evaluations(make_steps(VP, VP.grid(10), "ddpm", "v")) == 10
    assert model_evaluations(make_steps(VP, VP.grid(10), "heun", "v")) == 19


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VP.grid(3), "dpm", "v", None), "solver='dpm' is unknown; known: ddpm"),
        ((VP.grid(3), "ddpm", "v", 0.5), "eta=0.5 has no meaning for solver='ddpm'"),
        ((VP.grid(3), "ddim", "v", -1.0), "cannot be negative"),
        ((torch.tensor([0.0, 1.0]), "ddim", "v", None), "fall strictly"),
        ((torch.tensor([1.5, 1.0]), "ddim", "v", None), "fall strictly"),
        ((VP.grid(3), "ddim", "score", None), "parameterization='score'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        make_steps(VP, *arguments)
