"""Steps by pointers are `solver_step`, bit for bit; what they cannot do they refuse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pgraft_fast.ops import solver_step, use_backend
from pgraft_fast.ops.direct import DirectSteps

TABLE = torch.tensor(
    [
        [1.0, -0.5, 0.8, 0.1, 0.0, 0.0, 1, 0],
        [0.9, 0.4, -0.2, 0.7, 0.0, 0.0, 2, 0],
        [1.1, -1.3, 0.5, 0.6, 0.0, 0.3, 3, 0],
    ]
)
OPTIONS = [{}, {"clip": 0.7}, {"dynamic_ratio": 0.9, "dynamic_limit": 3.0}, {"guidance": 3.0, "guidance_rescale": 0.7}]


def network(x, dtype):
    return torch.tanh(2.0 * x.float() - 0.3).to(dtype)


@given(
    shape=st.sampled_from([(1, 4), (3, 5), (2, 3, 7, 5), (4, 1, 8, 8), (2, 70_000)]),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float16, torch.bfloat16])] * 2),
    options=st.sampled_from(OPTIONS), guided=st.booleans(), rows=st.lists(st.integers(0, 2), min_size=1, max_size=9),
)  # fmt: skip
def test_chains_of_steps(shape, dtypes, options, guided, rows):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtypes[0])
    if not guided:
        options = {name: value for name, value in options.items() if not name.startswith("guidance")}
    wanted, steps, kept = x, None, []
    for row in rows:
        x_in = torch.cat((wanted, wanted)) if guided else wanted
        out = network(x_in, dtypes[1]) * torch.linspace(0.5, 1.0, len(x_in)).view(-1, *[1] * (x.ndim - 1)).to(dtypes[1])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(row)) if TABLE[row, 5] else None
        if steps is None:
            assert DirectSteps.serve(x, out, TABLE)
            steps = DirectSteps(TABLE, x, out, expected=4, twice=guided, **options)
        moved = steps.step(row, steps.x, out, noise)
        null, out = out.chunk(2) if guided else (None, out)
        wanted = solver_step(wanted, out, TABLE, torch.tensor(row), out_null=null, noise=noise, **options).x_s
        assert torch.equal(moved, wanted) and moved.dtype is dtypes[0]
        assert torch.equal(steps.x_in, torch.cat((wanted, wanted)) if guided else wanted)
        kept.append((moved, wanted))
    # What a step wrote stays as it is, however many come after it.
    assert all(torch.equal(moved, wanted) for moved, wanted in kept)


@pytest.mark.parametrize("expected", [1, 3, 50])
@pytest.mark.parametrize("twice", [False, True])
def test_memory_is_laid_out_for_the_steps_to_come(expected, twice):
    """And for those after them, one by one."""
    x = torch.ones(2, 6, 4)
    steps, each = DirectSteps(TABLE, x, x, expected=expected, twice=twice), (1 + twice) * x.nbytes
    for place in range(expected + 2):
        x = steps.step(0, x, x)
        assert x.untyped_storage().nbytes() == (expected * each if place < expected else each)


def test_what_is_not_like_the_first_is_refused():
    x = torch.ones(2, 6, 4)
    steps = DirectSteps(TABLE, x, x, expected=2)
    refused = [
        (x.clone(), x), (x, x[:1]), (x, x.double()), (x, x.to(torch.bfloat16)), (x, torch.nn.Parameter(x)),
        (x, torch.ones(2, 4, 6).transpose(1, 2)), (x, torch.ones(2, 6, 4, device="meta")),
    ]  # fmt: skip
    for state, out in refused:
        assert steps.step(0, state, out) is None
    assert steps.step(2, x, x, noise=torch.ones(2, 6, 3)) is None
    assert steps.step(2, x, x, noise=torch.ones(2, 6, 4).double()) is None
    moved = steps.step(0, x, x)
    assert moved is not None and steps.step(0, x, x) is None
    assert steps.step(0, moved, x) is not None


def test_served_states():
    x = torch.ones(2, 6)
    assert DirectSteps.serve(x, x, TABLE)
    for state, out, table in [
        (x.double(), x.double(), TABLE), (x, x[:1], TABLE), (x, torch.ones(2, 5), TABLE), (x, x, TABLE.double()),
        (torch.ones(()), torch.ones(()), TABLE), (torch.ones(6, 2).t(), x, TABLE), (x, x, TABLE.t().contiguous().t()),
    ]:  # fmt: skip
        assert not DirectSteps.serve(state, out, table)
    for backend in ("reference", "triton"):
        with use_backend(backend):
            assert not DirectSteps.serve(x, x, TABLE)
    with FlopCounterMode(display=False):
        assert not DirectSteps.serve(x, x, TABLE)


def test_a_library_of_another_layout(monkeypatch):
    from pgraft_fast.ops import pointers

    monkeypatch.setattr(pointers, "SolverStepArguments", pointers.ctypes.c_int)
    with pytest.raises(AssertionError, match="SolverStepArguments differs from SolverStep"):
        pointers.library.__wrapped__()
