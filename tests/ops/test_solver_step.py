"""The fused solver step, on every backend, against its float64 reference."""

import itertools

import pytest
import torch
from held import DTYPES, FAST, check_operator, hold, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from pgraft_fast.diffusion import Schedule, normal
from pgraft_fast.errors import InputError
from pgraft_fast.ops import philox_normal, solver_step, use_backend
from pgraft_fast.ops.solver_step import _run
from pgraft_fast.sampling import SOLVERS, make_steps
from pgraft_fast.sampling.solvers import make_table

NAN = float("nan")
# p, q, a, b, c, d, noise number, slot
PLAIN, HISTORY, NOISY, KEEPS = range(4)
TABLE = torch.tensor(
    [
        [1.1, -0.4, 0.7, 0.25, 0.0, 0.0, 3, 0],
        [1.1, -0.4, 0.7, 0.45, -0.2, 0.0, 4, 0],
        [0.9, -0.6, 0.8, 0.15, 0.0, 0.3, 5, 0],
        [0.9, -0.6, 0.8, 0.15, 0.1, 0.2, 16_000_000, 2],
    ]
)
# Sizes 0, 1, odd, not a power of two, over one block of every kernel.
SHAPES = [(0, 3), (3, 0), (1, 1), (2, 5), (3, 3, 7, 5), (2, 4, 33, 31)]
# For the interpreter, whose time goes by the program: two samples, the last in two blocks each, the second one partial.
FEW = [(0, 3), (3, 0), (1, 1), (2, 5), (2, 3, 7, 5), (2, 3, 20, 19)]
OPTIONS = [
    {},
    {"row": HISTORY, "previous": True, "return_x_0": True},
    {"row": HISTORY, "return_x_0": True},
    {"row": NOISY, "guidance": 7.5, "sample_id": True},
    {"row": NOISY, "noise": True, "clip": 0.8},
    {"row": KEEPS, "guidance": 3.0, "guidance_rescale": 0.7, "cut": True, "previous": True},
    {"row": PLAIN, "dynamic_ratio": 0.9, "dynamic_limit": 1.5, "return_x_0": True},
    {"row": NOISY, "guidance": 2.0, "dynamic_ratio": 0.995, "dynamic_limit": 10.0, "return_log_prob": True},
    {"row": NOISY, "return_log_prob": True, "sample_id": True},
    {"row": PLAIN, "return_log_prob": True},
]


def tensors(shape, dtype, out_dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, out, out_null, previous, noise = (2.0 * torch.randn(shape, generator=generator) for _ in range(5))
    return {
        "x": x.to(dtype), "out": out.to(out_dtype), "out_null": out_null.to(out_dtype),
        "previous": previous.to(dtype), "noise": noise.to(dtype), "table": TABLE,
        "x_cut": torch.full((3, *shape), 7.0, dtype=dtype),
        "sample_id": torch.arange(shape[0]) * 1_000_003 + 2**34,
    }  # fmt: skip


def step_of(options):
    """(run, names of the inputs that it takes) of options as in OPTIONS."""
    options = dict(options)
    row = torch.tensor([options.pop("row", PLAIN)])
    taken = [name for name in ("previous", "noise", "sample_id") if options.pop(name, False)]
    taken += ["out_null"] if "guidance" in options else []
    taken += ["x_cut"] if options.pop("cut", False) else []

    def run(x, out, table, x_cut=None, **more):
        x_cut = None if x_cut is None else x_cut.clone()
        done = solver_step(x, out, table, row, seed=-5, x_cut=x_cut, **more, **options)
        return [value for value in (*done, x_cut) if value is not None]

    return run, ["x", "out", "table", *taken]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_equals_the_reference(options, dtype, backend):
    run, names = step_of(options)
    cases = list(itertools.product(SHAPES, {dtype, torch.float32}))
    if backend == "triton":
        # The largest size and the model's answer in another dtype once.
        cases = [(shape, dtype) for shape in (FEW if dtype is torch.float32 else FEW[:-1])]
        cases += [] if dtype is torch.float32 else [(FEW[-2], torch.float32)]
    for shape, out_dtype in cases:
        if shape[1] == 0 and "guidance_rescale" in options:
            continue  # The spread of nothing has no value.
        inputs = tensors(shape, dtype, out_dtype)
        hold(run, {name: inputs[name] for name in names}, backend)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=15)
@given(
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    row=st.sampled_from([PLAIN, HISTORY, NOISY, KEEPS]),
    flags=st.fixed_dictionaries(
        {name: st.booleans() for name in ("previous", "noise", "sample_id", "cut", "return_x_0", "return_log_prob")}
    ),
    guidance=st.sampled_from([None, 1.0, 4.0, -1.0]),
    limit=st.sampled_from([{}, {"clip": 0.5}, {"dynamic_ratio": 0.7, "dynamic_limit": 3.0}]),
)
def test_drawn_options(backend, dtype, batch, sizes, row, flags, guidance, limit):
    options = {**flags, **limit, "row": row} | ({} if guidance is None else {"guidance": guidance})
    run, names = step_of(options)
    # A program a sample, of which the interpreter makes few.
    shape = (min(batch, 3) if backend == "triton" else batch, *sizes)
    inputs = tensors(shape, dtype, dtype, seed=len(shape))
    hold(run, {name: inputs[name] for name in names}, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [{"row": NOISY, "guidance": 2.0}, {"row": KEEPS, "return_x_0": True, "cut": True}])
def test_channels_last_is_kept(options, backend):
    """Layout changes nothing but the layout: the noise is that of the place, not of the address."""
    run, names = step_of(options)
    inputs = tensors((2, 3, 6, 5), torch.float32, torch.float32)
    inputs = {name: inputs[name] for name in names}
    last = {n: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in inputs.items()}
    if "x_cut" in last:
        last["x_cut"] = last["x_cut"].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    with use_backend(backend):
        got, plain = run(**last), run(**inputs)
    assert got[0].is_contiguous(memory_format=torch.channels_last) and plain[0].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


@pytest.mark.parametrize("backend", FAST)
def test_mixed_layouts_and_strides(backend):
    x, out = torch.randn(4, 6, 5).transpose(1, 2), torch.randn(4, 5, 12)[..., ::2]
    step = torch.tensor(NOISY)
    with use_backend(backend):
        got = solver_step(x, out, TABLE, step).x_s
        assert torch.equal(got, solver_step(x.contiguous(), out.contiguous(), TABLE, step).x_s)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_noise_is_that_of_the_stream(backend):
    x, ids = torch.zeros(3, 2, 5), torch.tensor([8, 2**40, 1])
    with use_backend(backend), poisoned():
        done = solver_step(x, x, TABLE, torch.tensor(NOISY), sample_id=ids, seed=11, return_log_prob=True)
    noise = philox_normal(11, ids, torch.tensor([5]), 10).view(3, 2, 5)
    assert torch.equal(noise, normal(11, ids, 5, (2, 5)))
    assert torch.equal(done.x_s, TABLE[NOISY, 5] * noise)
    law = torch.distributions.Normal(0.0, float(TABLE[NOISY, 5]))
    assert torch.allclose(done.log_prob, law.log_prob(done.x_s).flatten(1).sum(1), rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_what_a_row_does_not_use_is_not_read(backend):
    x = torch.randn(2, 70)
    poison = torch.full_like(x, NAN)
    with use_backend(backend):
        done = solver_step(x, x, TABLE, torch.tensor(PLAIN), previous=poison, noise=poison, return_log_prob=True)
        assert torch.equal(done.x_s, solver_step(x, x, TABLE, torch.tensor(PLAIN)).x_s)
    assert done.log_prob.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_the_cut_is_kept_in_its_slot_alone(backend):
    x, x_cut = torch.randn(3, 40), torch.full((3, 3, 40), NAN)
    with use_backend(backend):
        for row in (PLAIN, KEEPS):
            x = solver_step(x, 0.1 * x, TABLE, torch.tensor(row), x_cut=x_cut).x_s
    assert torch.equal(x_cut[1], x)
    assert x_cut[[0, 2]].isnan().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("parameterization", ["epsilon", "v", "x_0", "velocity"])
def test_every_solver_and_parameterization(parameterization, solver, backend):
    """Whole trajectories of both backends agree to rounding with the float64 reference."""
    schedule = Schedule.cosine()
    rows = make_table(make_steps(schedule, schedule.grid(6, parameterization), solver, parameterization))
    ends, batch = {}, 2 if backend == "triton" else 4
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        x = normal(3, torch.arange(batch), 0, (9,), dtype=dtype)
        x_t, x_0 = x, None
        table = rows.coefficients.to(dtype)
        with use_backend(name):
            for row in itertools.chain(*rows.of_step):
                stage = row not in (steps.start for steps in rows.of_step)
                x_t = x_t if stage else x
                done = solver_step(
                    x, (0.3 * x).sin(), table, torch.tensor(row), previous=x_t if stage else x_0,
                    return_x_0=rows.multistep,
                )  # fmt: skip
                x, x_0 = done.x_s, done.x_0
        ends[name] = x
    scale = float(ends["reference"].abs().max())
    assert float((ends[backend] - ends["reference"]).abs().max()) < 2e-5 * scale


def test_operator():
    x = torch.randn(2, 3, 8)
    null = torch.randn(2, 3, 8)

    def arguments(row, x_cut):
        return (
            x, x * 0.3, null, None, None, TABLE, torch.tensor(row), torch.tensor([3, 1]), 5, 2.0, 0.0, 0.0, 0.0, 1.0,
            True, True, x_cut,
        )  # fmt: skip

    check_operator(
        torch.ops.pgraft_fast.solver_step.default, torch.ops.pgraft_fast.solver_step.default,
        [arguments(row, None) for row in (PLAIN, NOISY, KEEPS)],
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pgraft_fast.solver_step.default, arguments(KEEPS, torch.zeros(3, 2, 3, 8)))
    assert _run.__module__ == "pgraft_fast.ops.solver_step"


def test_compiled_trajectory_is_one_graph():
    def trajectory(x, counter, x_cut):
        for row in range(4):
            x = solver_step(x, 0.3 * x, TABLE, counter[row], x_cut=x_cut, seed=1).x_s
        return x

    x, cuts = torch.randn(2, 3, 8), [torch.zeros(3, 2, 3, 8) for _ in range(2)]
    compiled = torch.compile(trajectory, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, torch.arange(4), cuts[0]), trajectory(x, torch.arange(4), cuts[1]))
    assert torch.equal(*cuts)
    assert cuts[0][1].abs().sum() > 0


@pytest.mark.parametrize(
    ("more", "outputs"), [({}, 1), ({"return_x_0": True, "previous": torch.zeros(8, 4, 32, 32)}, 2)]
)
def test_allocates_its_outputs_and_nothing_else(more, outputs):
    x = torch.randn(8, 4, 32, 32)
    table = TABLE.clone()
    step = torch.tensor(NOISY)
    with use_backend("cpp"):
        solver_step(x, x, table, step, out_null=x, guidance=2.0, **more)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            solver_step(x, x, table, step, out_null=x, guidance=2.0, **more)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert allocated == outputs * x.numel() * x.element_size()


X = torch.zeros(2, 3)
ROW = torch.tensor(0)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((X, torch.zeros(2, 4), TABLE, ROW), {}, r"out has shape \(2, 4\), the state \(2, 3\)"),
        ((X.long(), X, TABLE, ROW), {}, "x has dtype torch.int64"),
        ((X[0, 0], X, TABLE, ROW), {}, "x is a scalar"),
        ((X, X, TABLE.double(), ROW), {}, r"table is torch.float64 \(4, 8\)"),
        ((X, X, TABLE[:, :7], ROW), {}, r"\(S, 8\) torch.float32 on cpu is needed"),
        ((X, X, TABLE, ROW.int()), {}, "step is torch.int32"),
        ((X, X, TABLE, ROW), {"guidance": 2.0}, "guidance needs out_null="),
        ((X, X.clone().requires_grad_(), TABLE, ROW), {}, "solver_step has no gradient: call it under torch.no_grad()"),
        ((X, X, TABLE, ROW), {"clip": 0.0}, "clip=0.0: it must be above 0"),
        ((X, X, TABLE, ROW), {"dynamic_ratio": 1.5}, "dynamic_ratio=1.5 must be in"),
        ((X, X, TABLE, ROW), {"x_cut": X}, r"x_cut is torch.float32 \(2, 3\)"),
        ((X, X, TABLE, ROW), {"sample_id": torch.zeros(3)}, r"\(2,\) torch.int64 on cpu is needed"),
    ],
)
def test_bad_input(arguments, more, message):
    with pytest.raises(InputError, match=message):
        solver_step(*arguments, **more)
