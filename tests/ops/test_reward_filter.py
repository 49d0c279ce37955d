"""reward_filter and gather_rows on every backend: equal to the reference, bit for bit."""

import math

import pytest
import torch
from held import FAST, check_operator, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from pgraft_fast.errors import InputError
from pgraft_fast.ops import gather_rows, reward_filter, use_backend
from pgraft_fast.ops.reward_filter import FILTER_RULES, _run

NAN, INF = math.nan, math.inf
VALUES = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 0.7, 1.0, 2.0, 1e-40, 3e38, NAN, INF, -INF])


def same(rewards, rule, backend, **options):
    """The backend's answer, after comparing it with the reference's."""
    with use_backend("reference"):
        wanted = reward_filter(rewards, rule, **options)
    with use_backend(backend), poisoned():
        got = reward_filter(rewards, rule, **options)
    for name in ("mask", "group_count", "packed", "count"):
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    return got


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    ragged = draw(st.booleans())
    lengths = lengths if ragged else [lengths[0]] * len(lengths)
    if ragged:
        lengths[-1:] = [0, lengths[-1]]
    total = sum(lengths)
    shape = (total,) if ragged else (len(lengths), -1)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    rewards = torch.tensor(draw(st.lists(VALUES, min_size=total, max_size=total)), dtype=dtype).view(shape)
    options = {"best_if_empty": draw(st.booleans()), "seed": draw(st.integers(-(2**63), 2**64 - 1))}
    if ragged:
        options["offsets"] = torch.tensor([0, *lengths]).cumsum(0)
    if draw(st.booleans()):
        options["sample_id"] = torch.tensor(draw(st.permutations(range(2**33, 2**33 + total)))).view(shape)
    if draw(st.booleans()):
        options["capacity"] = draw(st.integers(0, total + 3))
    rule = draw(st.sampled_from(FILTER_RULES))
    match rule:
        case "top_k":
            options["k"] = draw(st.integers(1, 14))
        case "classical":
            options |= {"temperature": draw(st.sampled_from([0.3, 2.0])), "step": draw(st.integers(0, 2**32 - 1))}
            if draw(st.booleans()):
                options["r_max"] = torch.full((len(lengths),), 1.5, dtype=torch.float64)
        case "threshold" | "binary":
            options["threshold"] = draw(st.sampled_from([0.0, 0.5, 0.7, 3.0]))
    if rule == "binary" and draw(st.booleans()):
        keys = draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
        options["copies_of"] = torch.tensor(keys).view(shape)
    return rewards, rule, options


@settings(max_examples=400)
@given(case=cases())
def test_cpp_equals_the_reference(case):
    rewards, rule, options = case
    same(rewards, rule, "cpp", **options)


@settings(max_examples=60)
@given(case=cases())
def test_triton_equals_the_reference(case):
    rewards, rule, options = case
    same(rewards, rule, "triton", **options)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("groups", "width", "k"), [(300, 16, 4), (9, 33, 5), (5, 100, 17), (2, 1024, 100)])
def test_widths(groups, width, k, backend):
    """Few distinct rewards, so that ties reach across every path."""
    # In the interpreter few programs, the last one not full.
    groups = min(groups, 70) if backend == "triton" else groups
    generator = torch.Generator().manual_seed(width)
    rewards = torch.randint(0, width // 3, (groups, width), generator=generator).float()
    rewards[torch.rand(rewards.shape, generator=generator) < 0.05] = NAN
    got = same(rewards, "top_k", backend, k=k)
    assert got.group_count.tolist() == [k] * groups
    ids = torch.randperm(groups * width, generator=generator).view(groups, width)
    same(rewards, "top_k", backend, k=k, sample_id=ids)
    same(rewards, "classical", backend, temperature=width / 30, step=7)


def test_parallel_pieces_join():
    """More groups than one thread takes: indices rise over all pieces, whatever a group kept."""
    rewards = torch.randn(50_000, 6)
    rewards[rewards < -1.0] = NAN
    same(rewards, "top_k", "cpp", k=5)
    same(rewards, "threshold", "cpp", threshold=0.3)
    same(rewards.flatten(), "preference", "cpp", offsets=torch.arange(0, 300_001, 3))


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_gather(backend):
    index = torch.tensor([4, -1, 0, 4])
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
        for shape in ((5,), (5, 1), (5, 7), (5, 2, 33), (5, 64)):
            x = torch.randint(0, 2, shape).to(dtype)
            other = torch.randn(5, 3)
            with use_backend(backend), poisoned():
                rows, others = gather_rows(index, x, other)
                assert gather_rows(index, x)[1] is None
                empty = gather_rows(index[:0], x)[0]
            for got, source in ((rows, x), (others, other)):
                assert torch.equal(got[[0, 2, 3]], source[[4, 0, 4]])
                assert not got[1].any()
            assert empty.shape == (0, *shape[1:]) and empty.dtype is dtype


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_gather_of_odd_inputs(backend):
    with use_backend(backend):
        assert gather_rows(torch.tensor([-1, -1]), torch.ones(0, 3))[0].tolist() == [[0.0] * 3] * 2
        assert gather_rows(torch.tensor([1]), torch.ones(2, 0))[0].shape == (1, 0)
        strided = torch.arange(12.0).view(3, 4).t()
        assert torch.equal(gather_rows(torch.tensor([3, 1]), strided)[0], strided[[3, 1]])


@pytest.mark.parametrize("backend", FAST)
@given(
    n=st.integers(1, 40), row=st.integers(1, 40), rows=st.integers(0, 60),
    other=st.integers(1, 9),
)  # fmt: skip
def test_gather_of_drawn_shapes(backend, n, row, rows, other):
    x, y = torch.randint(0, 255, (n, row), dtype=torch.uint8), torch.randn(n, other).half()
    index = torch.randint(-1, n, (rows,))
    with use_backend("reference"):
        wanted = gather_rows(index, x, y)
    with use_backend(backend), poisoned():
        got = gather_rows(index, x, y)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_large_rows_go_past_the_cache():
    x = torch.randn(60_000, 64)
    index = torch.randint(-1, 60_000, (50_000,))
    with use_backend("cpp"):
        got, _ = gather_rows(index, x)
    assert torch.equal(got, x[index.clamp(min=0)] * (index >= 0)[:, None])


def test_filter_and_gather_keep_the_best_states():
    rewards, states, prompts = torch.randn(20, 8), torch.randn(160, 5), torch.arange(160).view(160, 1)
    kept = reward_filter(rewards, "top_k", k=3)
    rows, kept_prompts = gather_rows(kept.packed, states, prompts)
    best = rewards.topk(3).indices.sort(1).values + torch.arange(20)[:, None] * 8
    assert torch.equal(rows, states[best.flatten()])
    assert torch.equal(kept_prompts[:, 0], best.flatten())


def test_operators():
    ops = torch.ops.pgraft_fast
    rewards = [torch.randn(6, 4), torch.randn(6, 4)]
    filters = [(r, None, None, None, None, 0, 2, 1.0, 0.0, False, 0, 0, 12) for r in rewards]
    check_operator(ops.reward_filter.default, ops.reward_filter.default, filters)
    gathers = [(torch.tensor([3, -1, 0]), r, torch.arange(6)) for r in rewards]
    check_operator(ops.gather_rows.default, ops.gather_rows.default, gathers)
    assert _run.__module__ == "pgraft_fast.ops.reward_filter"

    def pipeline(rewards, states):
        return gather_rows(reward_filter(rewards, "top_k", k=2).packed, states)[0]

    states = torch.randn(24, 3)
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rewards[0], states), pipeline(rewards[0], states))


ONE = torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reward_filter(ONE, "best"), "rule='best' is unknown; known: top_k"),
        (lambda: reward_filter([[0.0]], "top_k"), "rewards must be a tensor, got list"),
        (lambda: reward_filter(ONE[0], "top_k"), r"rewards must be \(P, N\)"),
        (lambda: reward_filter(ONE, "top_k", sample_id=ONE[0].long()), r"sample_id has shape \(2,\)"),
        (lambda: reward_filter(ONE, "classical", r_max=ONE[0]), r"r_max has shape \(2,\): \(1,\) is needed"),
        (lambda: reward_filter(ONE[0], "top_k", offsets=torch.tensor([0, 1])), "offsets must rise from 0 to 2"),
        (lambda: gather_rows(torch.zeros(2), ONE), "index is torch.float32"),
        (lambda: gather_rows(torch.zeros(2).long(), ONE, ONE[0]), r"other is \(2,\) on cpu: \(1, ...\) on cpu"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
