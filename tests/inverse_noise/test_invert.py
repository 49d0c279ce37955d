"""Inversion against closed forms, and what becomes of samples that cannot be inverted."""

import logging

import pytest
import torch
from small_nets import Steep
from torch import nn

import pgraft_fast as pf
from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise import SOLVERS, flow_steps, generate
from pgraft_fast.sampling import Guided, rollout
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow


class LinearFlow(nn.Module):
    """The exact velocity of the flow to N(m, C): E[z - x_0 | x_t] for x_t = (1 - t) x_0 + t z. calls: of one sample."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.mean, self.covariance, self.calls = mean, covariance, 0

    def matrix(self, t):
        """(A, c) with v = A (x - (1 - t) m) + c."""
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        spread = torch.linalg.inv((1 - t) ** 2 * self.covariance + t**2 * eye)
        return (t * eye - (1 - t) * self.covariance) @ spread, -self.mean

    def forward(self, x, t):
        self.calls += len(x)
        a, c = self.matrix(float(t[0]))
        centred = x.double() - (1 - float(t[0])) * self.mean
        return (centred @ a.T + c).to(x.dtype)


def gaussian(d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T + 0.3 * torch.eye(
        d, dtype=torch.float64
    )


def affine_of(model, steps, solver, d):
    """The generator as M z + b, from its answers in float64."""
    eye = torch.eye(d, dtype=torch.float64)
    b = generate(model, torch.zeros(1, d, dtype=torch.float64), steps, solver=solver)
    return (generate(model, eye, steps, solver=solver) - b).T, b[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_linear_gaussian_flows(solver, steps):
    """The generator is affine, so its inverse is known."""
    model = LinearFlow(*gaussian())
    matrix, offset = affine_of(model, steps, solver, 5)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = torch.linalg.solve(matrix, (x - offset).T).T
    inversion = pf.invert(model, x.float(), steps, solver=solver, tolerance=1e-7)
    assert inversion.converged.all() and inversion.noise.dtype is torch.float32
    assert float((inversion.noise - exact).norm() / exact.norm()) < 1e-5
    assert float(inversion.round_trip.max()) < 1e-5
    # In float64 to its own precision.
    exactly = pf.invert(model, x, steps, solver=solver, tolerance=1e-13, round_trip_limit=1e-12)
    assert float((exactly.noise - exact).norm() / exact.norm()) < 1e-11


def test_contraction_is_that_of_the_map():
    """h times the largest singular value bounds it; for a symmetric map and many directions it is nearly reached."""
    mean, covariance = gaussian()
    model = LinearFlow(mean, covariance)
    inversion = pf.invert(model, 3.0 * torch.randn(500, 5, generator=torch.Generator().manual_seed(2)), 8)
    times = torch.linspace(1.0, 0.0, 9).tolist()
    for number in range(8):
        bound = float(torch.linalg.matrix_norm(model.matrix(times[number])[0], 2)) / 8
        assert 0.5 * bound < float(inversion.contraction_of_step[number]) < 1.05 * bound
    assert inversion.contraction == pytest.approx(float(inversion.contraction_of_step.max()))


def test_the_generator_is_that_of_rollouts():
    model, noise = load_mlp_flow(), torch.randn(6, 1, 8, 8)
    for solver in ("euler", "heun"):
        drawn = rollout(
            model, pf.Schedule.linear_flow(), shape=(1, 8, 8), steps=9, solver=solver, parameterization="velocity",
            x_start=noise, start=1.0 - 1e-12, n=6,
        ).x_0  # fmt: skip
        assert torch.allclose(generate(model, noise, 9, solver=solver), drawn, atol=2e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_loop_makes_the_steps_that_are_inverted(solver):
    """In any layout and dtype, against the steps as the module has them."""

    def model(x, t):
        return torch.sin(2.0 * x) - x * t.view(-1, 1, 1, 1)

    noise = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wanted = noise
    for t, s, a, h, kind in flow_steps(6, solver):
        first = model(wanted, torch.full((3,), t, dtype=torch.float64))
        if kind == "heun":
            first = (first + model(wanted - h * first, torch.full((3,), s, dtype=torch.float64))) / 2
        elif kind == "midpoint":
            first = model(wanted - h / 2 * first, torch.full((3,), (t + s) / 2, dtype=torch.float64))
        wanted = a * wanted - h * first
    assert torch.allclose(generate(model, noise, 6, solver=solver), wanted, rtol=1e-12, atol=1e-13)
    for state in (noise.float(), noise.float().to(memory_format=torch.channels_last), noise.float().mT.contiguous().mT):
        drawn = generate(model, state, 6, solver=solver)
        assert drawn.dtype is torch.float32
        assert torch.allclose(drawn.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_guided_velocity_is_put_together():
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(5))

    def guided(x, t):
        return Guided(torch.sin(x), torch.cos(x), 3.0)

    assert torch.allclose(
        generate(guided, noise, 4), generate(lambda x, t: torch.cos(x) + 3.0 * (torch.sin(x) - torch.cos(x)), noise, 4),
        atol=1e-6,
    )  # fmt: skip


def test_digits_come_back(caplog):
    """All of them, with fewer calls than the plain iteration needs, and batches change nothing but rounding."""
    model, x = load_mlp_flow(), dequantised("held_out", 300, 0)
    calls = []
    with caplog.at_level(logging.WARNING):
        inversion = pf.invert(model, x, 20, on_batch=calls.append, batch_size=128)
    assert calls == [128, 128, 44] and caplog.records == []
    assert inversion.converged.all() and float(inversion.round_trip.max()) < 1e-5 and inversion.calls < 90 * 300
    assert float((generate(model, inversion.noise, 20) - x).abs().max()) < 1e-4
    assert inversion.summary().startswith("300 of 300 samples inverted, 8")
    whole = pf.invert(model, x, 20, batch_size=300)
    assert torch.allclose(inversion.noise, whole.noise, atol=2e-5)


def test_a_map_that_expands_is_solved_or_flagged(caplog):
    """h L = 3: the plain iteration diverges, the step is one to one, so mixing or damping must find the answer."""
    x = torch.linspace(-3.0, 3.0, 64)[:, None]
    inversion = pf.invert(Steep(12.0), x, 4)
    assert inversion.converged.all() and float(inversion.round_trip.max()) < 1e-5
    assert inversion.contraction > 1.0
    with caplog.at_level(logging.WARNING):
        lost = pf.invert(Steep(-12.0), x, 4, max_iterations=5)
    assert not lost.converged.all()
    assert torch.isnan(lost.noise[~lost.converged]).all() and torch.isfinite(lost.noise[lost.converged]).all()
    assert "failed and are left out (nan): take more steps, or less guidance" in caplog.text


def test_scaled_weights_end_and_say_so(caplog):
    """The shipped flow made non-contractive on purpose."""
    model = load_mlp_flow()
    with torch.no_grad():
        model.layers[-1].weight.mul_(40.0)
    with caplog.at_level(logging.WARNING):
        inversion = pf.invert(model, dequantised("train", 16, 0), 4, max_iterations=8)
    assert not inversion.converged.any() and torch.isnan(inversion.noise).all() and inversion.contraction > 1.0
    assert "16 failed" in caplog.text


def test_a_sample_that_is_no_number_fails_alone():
    model, x = load_mlp_flow(), dequantised("train", 6, 0)
    x[2, 0, 3, 3] = float("nan")
    inversion = pf.invert(model, x, 5)
    assert inversion.converged.tolist() == [True, True, False, True, True, True]
    other = pf.invert(model, x[:2], 5)
    assert torch.allclose(inversion.noise[:2], other.noise, atol=1e-5)


def test_converged_samples_leave_the_batch():
    """A sample at the fixed point costs one call a step, whatever its neighbours need."""
    model = LinearFlow(torch.zeros(1, dtype=torch.float64), 0.5 * torch.eye(1, dtype=torch.float64))
    x = torch.cat((torch.zeros(50, 1), torch.ones(1, 1)))
    inversion = pf.invert(model, x, 4)
    alone = pf.invert(model, torch.ones(1, 1), 4)
    assert inversion.calls == 50 * 4 + alone.calls and inversion.converged.all()


def test_a_narrow_model_keeps_a_wide_state():
    class Narrow(nn.Module):
        def forward(self, x, t):
            assert x.dtype is torch.bfloat16 and t.dtype is torch.bfloat16
            return -0.2 * x

    inversion = pf.invert(Narrow(), torch.randn(20, 3), 4, dtype=torch.bfloat16, tolerance=1e-4, round_trip_limit=1e-3)
    assert inversion.noise.dtype is torch.float32 and inversion.converged.all()


def test_conditions_stay_with_their_samples():
    class Conditional(nn.Module):
        def forward(self, x, t, condition):
            return condition * x

    condition = torch.linspace(-1.0, 1.0, 9)[:, None]
    x = torch.ones(9, 1)
    inversion = pf.invert(Conditional(), x, 10, condition=condition, batch_size=4)
    wanted = (1.0 - condition / 10) ** -10
    assert torch.allclose(inversion.noise, wanted, rtol=1e-4)
    assert torch.allclose(generate(Conditional(), wanted, 10, condition=condition), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0: at least 1"),
        ({"solver": "ddpm"}, "solver='ddpm' is unknown; known: euler, heun, midpoint, flow_sde"),
        ({"eta": 0.5}, "eta=0.5 has no meaning for solver='euler'"),
        ({"tolerance": 0.0}, r"tolerance=0.0: it must be above 0"),
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"condition": torch.zeros(3)}, "condition has 3 rows for 2 samples"),
        ({"grid": torch.tensor([0.0, 1.0])}, "times must fall strictly"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        pf.invert(Steep(0.1), torch.zeros(2, 3), **arguments)
    with pytest.raises(InputError, match=r"x_0 is torch.int64 \(2,\): \(B, ...\) floating"):
        pf.invert(Steep(0.1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"\(2,\): .*, \(B, 1\) of single numbers"):
        pf.invert(Steep(0.1), torch.zeros(2))


def test_a_model_of_the_wrong_shape():
    with pytest.raises(InputError, match=r"the model returned \(2, 2\) for a state of shape \(2, 3\)"):
        pf.invert(lambda x, t: x[:, :2], torch.zeros(2, 3))


def test_steps():
    assert [step.kind for step in flow_steps(3, "heun")] == ["heun", "heun", "euler"]
    assert sum(step.evaluations for step in flow_steps(4, "midpoint")) == 8
    sde = flow_steps(4, "flow_sde", eta=0.0)
    assert [(step.a, step.h) for step in sde] == [pytest.approx((1.0, 0.25))] * 4
