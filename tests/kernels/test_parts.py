"""A sample split over programs gives the bits that one program gives."""

import pytest
import torch
from held import hold

from pgraft_fast.ops import anderson_mix, fixed_point_update, solver_step, use_backend, weighted_mse

parts = pytest.importorskip("pgraft_fast_kernels.parts")

# Three parts' worth: two parts, the second shorter, its last block partial; and four that are whole.
SHAPES = [(2, 3, 51, 67), (1, 4, 64, 64)]
TABLE = torch.tensor([[1.1, -0.4, 0.7, 0.25, 0.0, 0.0, 3, 0], [0.9, -0.6, 0.8, 0.15, 0.0, 0.3, 5, 2]])
OPTIONS = [
    {"return_log_prob": True},
    {"guidance": 3.0, "guidance_rescale": 0.7, "clip": 2.0},
    {"guidance": 3.0, "dynamic_ratio": 0.9, "dynamic_limit": 9.0, "return_x_0": True},
    {"guidance": 3.0, "guidance_rescale": 0.7, "dynamic_ratio": 1.0, "dynamic_limit": 9.0, "return_log_prob": True},
]


def both(run, inputs, monkeypatch):
    """run(**inputs), held to the reference where samples are split, against one program a sample, bit for bit."""
    many = hold(run, inputs, "triton")
    with monkeypatch.context() as patch, use_backend("triton"):
        patch.setattr(parts, "FULL_BATCH", 0)
        single = run(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(many, single, strict=True))


def test_the_split_is_by_size_and_batch():
    assert parts.split(2, 8191, 1024) == (1, 8192, False)
    assert parts.split(2, 8192, 1024) == (2, 4096, True)
    assert parts.split(2, 3 * 51 * 67, 1024) == (2, 6144, True)
    assert parts.split(16, 16384, 2048) == (4, 4096, True)
    assert parts.split(1, 10**6, 1024) == (32, 31744, True)
    assert parts.split(parts.FULL_BATCH, 16384, 2048) == (4, 4096, False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weighted_mse(shape, monkeypatch):
    inputs = {"out": torch.randn(shape), "target": torch.randn(shape), "weight": torch.rand(shape[0])}
    both(lambda out, target, weight: (weighted_mse(out, target, weight),), inputs, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fixed_point_update(shape, monkeypatch):
    inputs = {name: torch.randn(shape) for name in ("x", "v", "y")}
    both(lambda x, v, y: fixed_point_update(x, v, y, 0.3), inputs, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_anderson_mix(shape, monkeypatch):
    inputs = {name: torch.randn(3, *shape) for name in ("following", "residual")}
    both(lambda following, residual: (anderson_mix(following, residual, 1e-6),), inputs, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_solver_step(options, shape, monkeypatch):
    row = torch.tensor(1 if "return_log_prob" in options else 0)

    def run(x, out, table, **more):
        done = solver_step(x, out, table, row, seed=3, **more, **options)
        return [value for value in done if value is not None]

    names = ("x", "out", "out_null") if "guidance" in options else ("x", "out")
    inputs = {name: 2.0 * torch.randn(shape) for name in names}
    both(run, inputs | {"table": TABLE}, monkeypatch)


@pytest.mark.parametrize("ratio", [1e-5, 0.37, 0.5, 0.99991, 1.0])
def test_the_limit_is_that_of_the_sorted_sample(ratio, monkeypatch):
    """Values of few kinds and of many, equal neighbours, zeros, and values that differ in the last bits alone."""
    close = 1.5 + torch.randperm(8200) * 2.0**-22
    x = torch.stack((torch.randn(8200), torch.randint(0, 4, (8200,)).float(), 3e4 * torch.randn(8200).round(), close))
    table = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0, 0]])

    def run(x):
        step = torch.tensor(0)
        return (solver_step(x, x, table.to(x.dtype), step, dynamic_ratio=ratio, dynamic_limit=1e6).x_s,)

    both(run, {"x": x}, monkeypatch)
