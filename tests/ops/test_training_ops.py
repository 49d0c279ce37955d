"""partial_noise and weighted_mse, on every backend, against their float64 references and closed forms."""

import pytest
import torch
from held import DTYPES, FAST, check_operator, hold, use_backend
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.diffusion import Schedule, target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.ops import partial_noise, philox_normal, weighted_mse

SHAPES = [(0, 3), (3, 0), (1, 1), (5, 7), (3, 2, 5, 5), (2, 4, 33, 31)]


def levels_of(batch, seed=0):
    t = torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.7 + 0.3
    schedule = Schedule.cosine()
    return torch.stack((*schedule.alpha_sigma(t), *target_coefficients(schedule, t, "v")), dim=1)


CUT = tuple(float(value) for value in Schedule.cosine().alpha_sigma(0.3))


@pytest.mark.parametrize("given_noise", [True, False])
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_partial_noise_equals_the_reference(dtype, backend, given_noise):
    ids = {"sample_id": torch.arange(9) * 77 + 2**33, "step": torch.arange(9) + (2 << 24)}

    def run(x, levels, noise=None):
        drawn = {name: value[: x.shape[0]] for name, value in ids.items()} if noise is None else {"noise": noise}
        return partial_noise(x, levels, *CUT, seed=3, **drawn)

    for shape in SHAPES:
        inputs = {"x": torch.randn(shape).to(dtype), "levels": levels_of(shape[0])}
        if given_noise:
            inputs["noise"] = torch.randn(shape).to(dtype)
        hold(run, inputs, backend)


@pytest.mark.parametrize("backend", FAST)
def test_partial_noise_strides_and_noise(backend):
    x = torch.randn(4, 6, 5).transpose(1, 2)
    ids, step = torch.arange(4) + 5, torch.arange(4)
    noise = philox_normal(3, ids, step, 30).view(4, 5, 6)
    with use_backend(backend):
        drawn = partial_noise(x, levels_of(4), *CUT, sample_id=ids, step=step, seed=3)
        for got, wanted in zip(drawn, partial_noise(x, levels_of(4), *CUT, noise=noise), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_partial_noise_at_the_cut_itself(backend):
    """s = cut: the state comes back, nothing blows up."""
    x = torch.randn(2, 9)
    t = torch.full((2,), 0.3, dtype=torch.float64)
    levels = torch.stack((*Schedule.cosine().alpha_sigma(t), torch.zeros_like(t), torch.ones_like(t)), dim=1)
    with use_backend(backend):
        x_s, target, weight = partial_noise(x, levels, *CUT, noise=torch.randn(2, 9))
    assert torch.allclose(x_s, x, atol=1e-6)
    assert weight.tolist() == [0.0, 0.0]
    assert bool(target.isfinite().all())


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weighted_mse_equals_the_reference(dtype, backend):
    def run(out, target, weight, grad):
        out = out.detach().requires_grad_()
        loss = weighted_mse(out, target, weight)
        (gradient,) = torch.autograd.grad(loss, out, grad)
        return loss.detach(), gradient, weighted_mse(out.detach(), target, weight)

    for shape in SHAPES:
        for target_dtype in {dtype, torch.float32}:
            inputs = {"out": torch.randn(shape).to(dtype), "target": torch.randn(shape).to(target_dtype)}
            inputs |= {"weight": torch.rand(shape[0]), "grad": torch.rand(shape[0])}
            hold(run, inputs, backend)


@pytest.mark.parametrize("backend", FAST)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), flip=st.booleans())
def test_weighted_mse_of_drawn_shapes(backend, shape, flip):
    def run(out, target, weight):
        return (weighted_mse(out.flip(0) if flip else out, target.mT if target.ndim > 2 else target, weight),)

    target = torch.randn(*shape[:-2], *shape[:-3:-1]) if len(shape) > 2 else torch.randn(shape)
    hold(run, {"out": torch.randn(shape), "target": target, "weight": torch.rand(shape[0])}, backend)


def test_gradient_of_the_reference():
    out = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda o: weighted_mse(o, target, weight), (out,))


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_the_gradient_given_is_not_written(backend):
    out = torch.randn(3, 4, requires_grad=True)
    grad = torch.tensor([1.0, 0.0, -2.0])
    with use_backend(backend):
        weighted_mse(out, torch.zeros(3, 4), torch.ones(3)).backward(grad)
    assert grad.tolist() == [1.0, 0.0, -2.0]
    assert torch.allclose(out.grad, grad[:, None] * out.detach() / 2)


def test_operators():
    ops = torch.ops.pgraft_fast
    x, ids = torch.randn(3, 2, 5), torch.arange(3)
    noisy = [(torch.randn(3, 2, 5), None, levels_of(3, seed), ids, ids, 4, *CUT) for seed in (0, 1)]
    check_operator(ops.partial_noise.default, ops.partial_noise.default, noisy)
    pairs = [(torch.randn(3, 4), torch.randn(3, 4), torch.rand(3)) for _ in range(2)]
    check_operator(ops.weighted_mse.default, ops.weighted_mse.default, pairs)
    check_operator(ops.weighted_mse_grad.default, ops.weighted_mse_grad.default, [(*p, torch.rand(3)) for p in pairs])

    def loss_and_gradient(out, target, weight):
        out = out.detach().requires_grad_()
        loss = weighted_mse(out, target, weight).sum()
        loss.backward()
        return loss.detach(), out.grad

    weights = torch.randn(10, 10, requires_grad=True)
    compiled = torch.compile(
        lambda x: weighted_mse(x.flatten(1) @ weights, x.flatten(1), torch.ones(3)).sum(), fullgraph=True,
        backend="aot_eager",
    )  # fmt: skip
    compiled(x).backward()
    expected = weighted_mse(x.flatten(1) @ weights, x.flatten(1), torch.ones(3)).sum()
    assert torch.allclose(torch.autograd.grad(expected, weights)[0], weights.grad, rtol=1e-6)
    assert len(loss_and_gradient(*pairs[0])) == 2


ONES = torch.ones(2)
X = torch.zeros(2, 3)
LEVELS = torch.ones(2, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partial_noise(X, LEVELS.float(), 1.0, 0.0, noise=X), r"levels is torch.float32 \(2, 4\)"),
        (lambda: partial_noise(X, LEVELS, 1.0, 0.0), "give noise=, or sample_id= and step="),
        (lambda: partial_noise(X, LEVELS, 1.0, 0.0, noise=X[:1]), r"noise has shape \(1, 3\)"),
        (lambda: partial_noise(X, LEVELS, 1.0, 0.0, sample_id=ONES, step=ONES), "sample_id is torch.float32"),
        (lambda: weighted_mse(X, X[:, :2], ONES), r"target has shape \(2, 2\)"),
        (lambda: weighted_mse(X, X, ONES.double()), "weight is torch.float64"),
        (lambda: weighted_mse(X, torch.zeros(2, 3, requires_grad=True), ONES), "differentiates out alone"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
