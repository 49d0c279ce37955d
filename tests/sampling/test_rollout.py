"""Rollouts: what a sample depends on, handover, partial trajectories, no host reads, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import SOLVERS, guided, rollout
from pgraft_fast.sampling.rollout import _Trajectories
from pgraft_fast.tasks.digits import DigitsSettings, digits_task

FLOW, COSINE = Schedule.linear_flow(), Schedule.cosine()
ELEMENTWISE = {"shape": (3, 5), "steps": 12, "parameterization": "v", "seed": 4}
CUTS = (0.0, 0.1, 0.25, 0.33, 0.5, 0.9)


def elementwise(x, t):
    """A model without arithmetic between elements."""
    return 0.5 * x * t.view(-1, *[1] * (x.ndim - 1)) + 0.1


@pytest.fixture(scope="module")
def digits():
    return digits_task(DigitsSettings())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cut", CUTS)
def test_tuned_equal_to_reference_changes_nothing(solver, cut):
    plain = rollout(elementwise, COSINE, n=6, solver=solver, **ELEMENTWISE)
    handed = rollout(elementwise, COSINE, n=6, solver=solver, tuned=elementwise, cut=cut, cuts=CUTS, **ELEMENTWISE)
    assert torch.equal(plain.x_0, handed.x_0)
    assert torch.equal(handed.x_cut[0.0], handed.x_0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tuned_equal_to_reference_with_a_network(digits, solver):
    common = {"shape": digits.shape, "n": 3, "steps": 6, "solver": solver, "parameterization": "v"}
    plain = rollout(digits.model, digits.schedule, **common)
    handed = rollout(digits.model, digits.schedule, tuned=digits.model, cut=0.4, **common)
    assert torch.equal(plain.x_0, handed.x_0)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=15)
@given(
    ids=st.lists(st.integers(0, 2**40), min_size=2, max_size=9, unique=True), batch=st.integers(1, 9), data=st.data()
)
def test_a_sample_does_not_depend_on_its_batch(solver, ids, batch, data):
    ids = torch.tensor(ids)
    order = torch.tensor(data.draw(st.permutations(range(ids.numel()))))
    together = rollout(elementwise, COSINE, sample_ids=ids, solver=solver, cuts=(0.5,), **ELEMENTWISE)
    apart = rollout(
        elementwise, COSINE, sample_ids=ids[order], solver=solver, cuts=(0.5,), batch_size=batch, **ELEMENTWISE
    )
    assert torch.equal(together.x_0[order], apart.x_0)
    assert torch.equal(together.x_cut[0.5][order], apart.x_cut[0.5])
    assert torch.equal(apart.sample_id, ids[order])


def test_a_sample_of_a_network_does_not_depend_on_its_batch(digits):
    common = {"shape": digits.shape, "steps": 10, "parameterization": "v"}
    ids = torch.arange(40)
    together = rollout(digits.model, digits.schedule, sample_ids=ids, **common)
    apart = rollout(digits.model, digits.schedule, sample_ids=ids.flip(0), batch_size=7, **common)
    assert torch.allclose(together.x_0, apart.x_0.flip(0), atol=2e-4)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dpmpp_2m"])
@pytest.mark.parametrize("cut", [0.25, 0.4])
def test_two_parts_are_the_whole(solver, cut):
    whole = rollout(elementwise, FLOW, n=5, solver=solver, cuts=(cut,), **ELEMENTWISE)
    upper = rollout(elementwise, FLOW, n=5, solver=solver, stop=cut, **ELEMENTWISE)
    lower = rollout(elementwise, FLOW, n=5, solver=solver, start=cut, x_start=upper.x_cut[cut], **ELEMENTWISE)
    assert torch.equal(upper.x_cut[cut], whole.x_cut[cut])
    assert torch.equal(lower.x_0, whole.x_0)
    assert upper.t_cut == whole.t_cut
    assert upper.model_calls + lower.model_calls == whole.model_calls
    with pytest.raises(InputError, match="stopped at t="):
        upper.x_0  # noqa: B018


def test_a_multistep_solver_starts_anew_at_a_cut():
    upper = rollout(elementwise, FLOW, n=5, solver="dpmpp_2m", stop=0.25, **ELEMENTWISE)
    lower = rollout(elementwise, FLOW, n=5, solver="dpmpp_2m", start=0.25, x_start=upper.x_cut[0.25], **ELEMENTWISE)
    grid = FLOW.grid(12)
    again = rollout(
        elementwise, FLOW, n=5, solver="dpmpp_2m", start=0.25, x_start=upper.x_cut[0.25], grid=grid[9:],
        shape=(3, 5), parameterization="v",
    )  # fmt: skip
    assert torch.allclose(lower.x_0, again.x_0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "cut"), [(10, 0.3), (50, 0.25), (7, 0.5), (4, 0.9)])
def test_handover_is_at_the_cut_log_snr(solver, steps, cut):
    seen = {"tuned": [], "reference": []}

    def recorder(name):
        def model(x, t):
            seen[name].append(float(t[0]))
            return elementwise(x, t)

        return model

    limit = float(COSINE.t_of_logsnr(COSINE.cut_logsnr(cut)))
    rollout(
        recorder("reference"), COSINE, shape=(2,), n=1, steps=steps, solver=solver, parameterization="v",
        tuned=recorder("tuned"), cut=cut, dtype=torch.float64,
    )  # fmt: skip
    starts = {t for t in COSINE.grid(steps, "v").tolist() if t > 0}
    if solver != "heun":
        assert set(seen["tuned"]) | set(seen["reference"]) == starts
        assert all(t > limit + 1e-9 for t in seen["tuned"])
    assert all(t <= limit + 1e-9 for t in seen["reference"])


def test_cut_means_the_same_noise_on_another_grid():
    """The cut of an unshifted flow, kept as log-SNR, hands over at t = 0.25 on a shifted grid, too."""
    calls = []
    shifted, logsnr = Schedule.linear_flow(3.0), FLOW.cut_logsnr(0.25)

    def tuned(x, t):
        calls.append(float(t[0]))
        return elementwise(x, t)

    rollout(
        elementwise, shifted, shape=(2,), n=1, steps=40, parameterization="velocity", tuned=tuned, cut_logsnr=logsnr
    )
    assert min(calls) > 0.25
    assert len(calls) == int((shifted.grid(40)[:-1] > 0.25 + 1e-9).sum())


def test_states_are_kept_at_the_first_time_below_the_cut():
    drawn = rollout(elementwise, FLOW, n=2, shape=(2,), steps=50, parameterization="velocity", cuts=(0.25, 0.26, 0.5))
    assert drawn.t_cut == pytest.approx({0.25: 0.24, 0.26: 0.26, 0.5: 0.5})
    assert not torch.equal(drawn.x_cut[0.25], drawn.x_cut[0.26])


class _NoHostReads(TorchDispatchMode):
    """Fails on what would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name and "is_nonzero" not in name, name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_in_the_loop_reads_back(solver):
    inside = []

    def model(x, t):
        inside.append(torch.utils._python_dispatch._get_current_dispatch_mode() is not None)
        return elementwise(x, t)

    ready = rollout(model, FLOW, n=2, solver=solver, **ELEMENTWISE)  # Plans are made on the host.
    inside.clear()
    original = _Trajectories.batch

    def guarded(self, *args):
        with _NoHostReads():
            return original(self, *args)

    _Trajectories.batch = guarded
    try:
        again = rollout(model, FLOW, n=2, solver=solver, tuned=model, cut=0.5, cuts=(0.5,), clip_x_0=9.0, **ELEMENTWISE)
    finally:
        _Trajectories.batch = original
    assert all(inside)
    assert torch.equal(ready.x_0, again.x_0)


def test_clip():
    drawn = rollout(elementwise, FLOW, n=4, clip_x_0=0.1, solver="euler", **ELEMENTWISE)
    assert float(drawn.x_0.abs().max()) == pytest.approx(0.1)


def test_low_precision_state():
    common = {**ELEMENTWISE, "n": 4, "solver": "ddim"}
    exact = rollout(elementwise, FLOW, dtype=torch.float64, **common).x_0
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        drawn = rollout(elementwise, FLOW, dtype=dtype, **common).x_0
        assert drawn.dtype == dtype
        assert float((drawn.double() - exact).abs().max()) < limit


def test_guidance():
    def model(x, t, condition):
        return x * condition[:, None, None]

    x, t, condition = torch.randn(4, 3, 5), torch.rand(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    out = guided(model, 2.5, torch.tensor(0.5))(x, t, condition).combined()
    assert torch.allclose(out, x * (0.5 + 2.5 * (condition - 0.5))[:, None, None])
    assert guided(model, 1.0, torch.tensor(0.5)) is model


def test_guided_rollouts_combine_inside_the_step_and_count_two_calls():
    def model(x, t, condition):
        return 0.1 * x * condition[:, None]

    class Plain:
        def __call__(self, x, t, condition):
            return guided(model, 2.5, torch.tensor(0.5))(x, t, condition).combined()

    arguments = {"shape": (5,), "n": 4, "steps": 6, "condition": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    result = rollout(guided(model, 2.5, torch.tensor(0.5)), FLOW, parameterization="velocity", **arguments)
    plain = rollout(Plain(), FLOW, parameterization="velocity", **arguments)
    assert torch.allclose(result.x_0, plain.x_0, atol=1e-6)
    assert result.model_calls == 2 * plain.model_calls == 2 * 4 * 6


def test_condition_rows_stay_with_their_samples():
    def model(x, t, condition):
        return x - condition[:, None, None]

    condition = torch.arange(6.0)
    common = {**ELEMENTWISE, "solver": "euler"}
    whole = rollout(model, FLOW, n=6, condition=condition, batch_size=4, **common)
    single = rollout(model, FLOW, sample_ids=torch.tensor([5]), condition=condition[5:], **common)
    assert torch.equal(whole.x_0[5:], single.x_0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({}, "n=None"),
        ({"n": 3, "sample_ids": torch.arange(2)}, "n=3 but sample_ids has 2"),
        ({"sample_ids": torch.rand(2)}, "1-D tensor of integers"),
        ({"n": 2, "tuned": elementwise}, "go together"),
        ({"n": 2, "tuned": elementwise, "cut": 1.0}, r"cut=1.0.*\[0, 1\)"),
        ({"n": 2, "tuned": elementwise, "cut": 0.5, "cut_logsnr": 0.0}, "not both"),
        ({"n": 2, "start": 0.5}, "x_start and start"),
        ({"n": 2, "x_start": torch.zeros(3, 3, 5), "start": 0.5}, "3 rows for 2 samples"),
        ({"n": 2, "x_start": torch.zeros(2, 3, 5), "start": 0.5, "stop": 0.5}, "no step in between"),
        ({"n": 2, "stop": 0.5, "cuts": (0.25,)}, "cut=0.25 is outside"),
        ({"n": 2, "condition": torch.zeros(3)}, "condition has 3 rows"),
        ({"n": 2, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        rollout(elementwise, FLOW, **arguments, **ELEMENTWISE)


@pytest.mark.parametrize("output", [torch.zeros(2, 3), None])
def test_model_of_the_wrong_shape(output):
    with pytest.raises(InputError, match="the model returned"):
        rollout(lambda x, t: output, FLOW, n=2, **ELEMENTWISE)
