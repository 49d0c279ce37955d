"""fixed_point_update and anderson_mix, on every backend, against float64 references and what they are for."""

import pytest
import torch
from held import DTYPES, FAST, check_operator, hold
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.errors import InputError
from pgraft_fast.ops import anderson_mix, fixed_point_update, use_backend


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update_equals_the_reference(dtype, backend):
    for shape in [(0, 3), (3, 0), (1, 1), (5, 7), (2, 4, 33, 31)]:
        for v_dtype in {dtype, torch.float32}:
            inputs = {name: torch.randn(shape).to(dtype) for name in "xy"} | {"v": torch.randn(shape).to(v_dtype)}
            hold(lambda x, y, v: fixed_point_update(x, v, y, 0.37), inputs, backend)


@pytest.mark.parametrize("backend", FAST)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), h=st.floats(-2, 2))
def test_update_of_drawn_shapes(backend, shape, h):
    inputs = {name: torch.randn(shape) for name in "xyv"}
    hold(lambda x, y, v: fixed_point_update(x, v, y, h), inputs, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("history", [1, 2, 5, 8])
def test_mix_equals_the_reference(history, backend):
    for dtype in DTYPES if history == 5 else DTYPES[:1]:
        for shape in [(0, 3), (1, 1), (3, 7), (2, 3, 33, 5)]:
            inputs = {name: torch.randn(history, *shape).to(dtype) for name in ("following", "residual")}
            hold(lambda following, residual: (anderson_mix(following, residual, 1e-6),), inputs, backend)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_sample_that_stands_still_keeps_its_newest_iterate(backend):
    following, residual = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    residual[:, 1] = 0.0
    with use_backend(backend):
        mixed = anderson_mix(following, residual)
    assert torch.equal(mixed[1], following[2, 1])
    assert not torch.equal(mixed[0], following[2, 0])


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_parallel_residuals_are_no_trouble(backend):
    """A Gram matrix of rank one: the ridge decides, the weights stay finite and sum to 1."""
    residual = torch.randn(1, 1, 50) * torch.tensor([1.0, 2.0, -3.0]).view(3, 1, 1)
    with use_backend(backend):
        mixed = anderson_mix(torch.ones(3, 1, 50), residual)
    assert torch.allclose(mixed, torch.ones(1, 50), atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_solves_a_linear_fixed_point_sooner(backend):
    """y = x - h A y, with |h A| = 0.9: mixing needs a fraction of the plain iterations."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6))[0]
    matrix = basis @ torch.diag(torch.linspace(0.1, 0.9, 6)) @ basis.T
    x = torch.randn(4, 6)

    def iterations(mix):
        y, followings, residuals = torch.zeros_like(x), [], []
        for count in range(1, 200):
            following, residual = fixed_point_update(x, y @ matrix, y, 1.0)
            if float(residual.max()) < 1e-5:
                return count
            followings, residuals = [*followings, following][-5:], [*residuals, following - y][-5:]
            y = anderson_mix(torch.stack(followings), torch.stack(residuals)) if mix else following
        return count

    with use_backend(backend):
        assert 4 * iterations(mix=True) < iterations(mix=False)


def test_operators():
    ops = torch.ops.pgraft_fast
    updates = [(torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4), 0.5) for _ in range(2)]
    check_operator(ops.fixed_point_update.default, ops.fixed_point_update.default, updates)
    mixes = [(torch.randn(3, 2, 4), torch.randn(3, 2, 4), 1e-6) for _ in range(2)]
    check_operator(ops.anderson_mix.default, ops.anderson_mix.default, mixes)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_point_update(X, X[:1], X, 0.1), r"v has shape \(1, 3\)"),
        (lambda: fixed_point_update(X.int(), X, X, 0.1), "x has dtype torch.int32"),
        (lambda: anderson_mix(X[0], X[0]), r"\(m, B, ...\) with 1 <= m <= 8"),
        (lambda: anderson_mix(torch.zeros(9, 2, 3), torch.zeros(9, 2, 3)), r"1 <= m <= 8"),
        (lambda: anderson_mix(X, X, -1.0), "ridge=-1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
