"""Recorded trajectories: the same as a rollout's, and log-densities against their closed form."""

import math

import pytest
import torch

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import guided, rollout
from pgraft_fast.sampling.recorded import combined, density_table, record, step_log_prob

FLOW, COSINE, EDM = Schedule.linear_flow(), Schedule.cosine(), Schedule.edm()
STOCHASTIC = [("ddpm", None), ("euler_sde", None), ("euler_sde", 0.5), ("ddim", 1.0), ("ddim", 0.3)]
IDS = torch.tensor([3, 0, 17, 2**40, 5])


def model(x, t, condition=None):
    shift = 0.0 if condition is None else condition.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return torch.tanh(0.6 * x + t.view(-1, *[1] * (x.ndim - 1))) + 0.2 * shift


def exact_log_prob(recording, step, out):
    """Density of the kept states in float64, from the rows of the table."""
    p, q, a, b, _, d = recording.table[step, :6]
    x_t, x_s = recording.states[step].double(), recording.states[step + 1].double()
    z = (x_s - a * x_t - b * (p * x_t + q * out.double())) / d
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1) - z[0].numel() * d.log()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("solver, eta", STOCHASTIC)
def test_equals_rollout_bit_for_bit(solver, eta, dtype):
    common = {
        "shape": (3, 5), "steps": 7, "solver": solver, "eta": eta, "parameterization": "v", "seed": 4,
        "sample_ids": IDS, "condition": torch.arange(5.0), "dtype": dtype,
    }  # fmt: skip
    for net in (model, guided(model, 2.5, torch.zeros(1))):
        whole = rollout(net, COSINE, batch_size=5, cuts=(0.6,), **common)
        recording = record(net, COSINE, batch_size=2, **common)
        assert torch.equal(recording.x_0, whole.x_0)
        assert torch.equal(recording.states[-1], whole.x_0)
        assert torch.equal(recording.states[3], whole.x_cut[0.6])
        assert recording.model_calls == whole.model_calls == 5 * 7 * recording.calls_a_sample
        assert recording.calls_a_sample == (1 if net is model else 2)


@pytest.mark.parametrize("schedule, parameterization", [(FLOW, "velocity"), (COSINE, "v"), (EDM, "epsilon")])
@pytest.mark.parametrize("solver, eta", STOCHASTIC)
def test_log_prob_is_the_density_of_the_step(schedule, parameterization, solver, eta):
    common = {
        "shape": (2, 3), "steps": 6, "solver": solver, "eta": eta, "parameterization": parameterization,
        "sample_ids": IDS,
    }  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        recording = record(model, schedule, dtype=dtype, **common)
        assert recording.log_prob.dtype is dtype
        assert recording.drawn.tolist() == [True] * 5 + [False]
        assert bool((recording.log_prob[-1] == 0).all())
        density = density_table(recording.table, dtype, torch.device("cpu"))
        for step in range(5):
            out = model(recording.states[step], recording.times[step].to(dtype).expand(5))
            again = step_log_prob(out, recording.states[step], recording.states[step + 1], density[step].expand(5, -1))
            exact = exact_log_prob(recording, step, out)
            # What rounding of the states, as large as they are beside d, does to z, |z| < 4 in 6 elements.
            largest = float(recording.states[step : step + 2].abs().max()) / float(recording.table[step, 5])
            tolerance = 4.0 * 6.0 * 4.0 * torch.finfo(dtype).eps * (largest + 1.0)
            assert torch.allclose(recording.log_prob[step].double(), exact, rtol=0, atol=tolerance)
            assert torch.allclose(again.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eta", [1.0, 0.01])
def test_one_pass_is_no_worse_than_the_difference_to_the_mean(eta):
    """Many steps of little noise, where b q is tiny: error against float64 of both ways to compute."""
    recording = record(
        model, COSINE, shape=(64,), steps=200, solver="ddim", eta=eta, parameterization="v", sample_ids=torch.arange(4)
    )
    density = density_table(recording.table, torch.float32, torch.device("cpu"))
    assert float((recording.table[:-1, 3] * recording.table[:-1, 1]).abs().min()) < 1e-2
    error, plain_error = [], []
    for step in range(199):
        x_t, x_s = recording.states[step], recording.states[step + 1]
        out = model(x_t, recording.times[step].float().expand(4))
        exact = exact_log_prob(recording, step, out)
        p, q, a, b, _, d = recording.table[step, :6].float()
        z = (x_s - (a * x_t + b * (p * x_t + q * out))) / d
        plain = -0.5 * z.square().sum(1) - 64 * (d.log() + 0.5 * math.log(2 * math.pi))
        log_prob = step_log_prob(out, x_t, x_s, density[step].expand(4, -1))
        error.append((log_prob - exact).abs().max())
        plain_error.append((plain - exact).abs().max())
    assert torch.stack(error).square().mean().sqrt() <= 1.2 * torch.stack(plain_error).square().mean().sqrt()


def test_gradient_through_both_answers():
    """Of the guided log-density, against finite differences."""
    x_t, x_s, out, out_null = torch.randn(4, 2, 5, dtype=torch.float64).unbind()
    density = density_table(torch.tensor([[0.7, -0.8, 0.9, 0.1, 0.0, 0.3, 1, 0]]), torch.float64, torch.device("cpu"))

    def log_prob(out, out_null):
        return step_log_prob(combined(out, out_null, 3.0), x_t, x_s, density.expand(2, -1))

    assert torch.autograd.gradcheck(log_prob, (out.requires_grad_(), out_null.requires_grad_()))


def test_guidance_of_half_precision_answers_is_put_together_in_float32():
    out, out_null = torch.randn(2, 3, 5).bfloat16().unbind()
    output = combined(out, out_null, 7.5)
    assert output.dtype is torch.float32
    assert torch.equal(output, out_null.float() + 7.5 * (out.float() - out_null.float()))
    assert combined(out, None, 1.0) is out


@pytest.mark.parametrize(
    "dtype, state_dtype",
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, None),
        (torch.bfloat16, torch.float32),
    ],
)
def test_narrow_states_are_what_the_model_saw(dtype, state_dtype):
    recording = record(
        model, FLOW, shape=(4, 16), steps=9, parameterization="velocity", sample_ids=IDS, dtype=dtype,
        state_dtype=state_dtype,
    )  # fmt: skip
    assert recording.states.dtype is (state_dtype or dtype)
    assert recording.x_0.dtype is dtype
    assert torch.equal(recording.x_0.to(recording.states.dtype), recording.states[-1])
    for step in range(8):
        out = model(recording.states[step].to(dtype), recording.times[step].to(dtype).expand(5))
        # An element: a clip range is 1e-4.
        assert float((recording.log_prob[step] - exact_log_prob(recording, step, out)).abs().max()) / 64 < 2e-6


def test_what_a_batch_costs_is_reported():
    calls = []
    net = guided(model, 3.0, torch.zeros(1))
    record(net, FLOW, shape=(2,), steps=4, sample_ids=IDS, condition=torch.ones(5), batch_size=3, on_batch=calls.append)
    assert calls == [2 * 4 * 3, 2 * 4 * 2]


@pytest.mark.parametrize(
    "solver, eta",
    [("euler", None), ("heun", None), ("dpmpp_2m", None), ("ddim", None), ("ddim", 0.0), ("euler_sde", 0.0)],
)
def test_solvers_without_noise_are_refused(solver, eta):
    with pytest.raises(InputError, match=r"no log-probability; use ddpm, euler_sde, or ddim with eta above 0") as error:
        record(model, FLOW, shape=(2,), sample_ids=IDS, solver=solver, eta=eta)
    assert "\n" not in str(error.value)


def test_bad_input():
    with pytest.raises(InputError, match="steps=1: the last step of ddpm draws no noise"):
        record(model, FLOW, shape=(2,), sample_ids=IDS, steps=1)
    with pytest.raises(InputError, match="sample_ids must be"):
        record(model, FLOW, shape=(2,), sample_ids=torch.zeros(0))
    with pytest.raises(InputError, match="condition has 2 rows for 5"):
        record(model, FLOW, shape=(2,), sample_ids=IDS, condition=torch.ones(2))
    with pytest.raises(InputError, match="the model returned"):
        record(lambda x, t: x[:1], FLOW, shape=(2,), sample_ids=IDS)
    with pytest.raises(InputError, match="batch_size=0"):
        record(model, FLOW, shape=(2,), sample_ids=IDS, batch_size=0)
