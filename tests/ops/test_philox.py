"""Philox against its published vectors, its normals against the formula and the law."""

import numpy as np
import pytest
import torch
from held import FAST, check_operator, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pgraft_fast.ops import use_backend
from pgraft_fast.ops.philox import philox4x32, philox_normal, philox_words, words_to_normal, words_to_uniform

# Random123's known-answer vectors of philox4x32-10: counter, key, output.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
U32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@given(counter=st.tuples(U32, U32, U32, U32), key=st.tuples(U32, U32))
def test_equals_integer_arithmetic(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert [int(word) for word in words] == c


def test_counter_layout():
    seed, sample, step = 0x0123456789ABCDEF, 0x1122334455, 7
    words = philox_words(seed, torch.tensor([sample]), torch.tensor([step]), 9)
    for block in range(3):
        counter = tuple(torch.tensor([word]) for word in (block, step, 0x22334455, 0x11))
        expected = torch.stack(philox4x32(counter, (0x89ABCDEF, 0x01234567)), dim=-1)
        assert torch.equal(words[0, 4 * block : 4 * block + 4], expected[0, : min(4, 9 - 4 * block)])


@given(n=st.integers(1, 9), steps=st.integers(1, 4), values=st.integers(1, 11), seed=st.integers(0, 2**63 - 1))
def test_a_number_does_not_depend_on_its_neighbours(n, steps, values, seed):
    ids = torch.arange(n) * 1000003 + 2**33
    numbers = torch.arange(steps)[:, None]
    everything = philox_normal(seed, ids, numbers, values)
    assert everything.shape == (steps, n, values)
    single = philox_normal(seed, ids[-1:], numbers[-1:], values)
    assert torch.equal(single[0, 0], everything[-1, -1])
    assert torch.equal(philox_normal(seed, ids.flip(0), numbers, values).flip(1), everything)


def test_one_step_per_sample():
    ids, steps = torch.arange(5), torch.tensor([3, 1, 4, 1, 5])
    mixed = philox_normal(9, ids, steps, 6)
    for row in range(5):
        assert torch.equal(mixed[row], philox_normal(9, ids[row : row + 1], steps[row : row + 1], 6)[0])


def test_normals_follow_the_formula():
    words = philox_words(3, torch.arange(2000), torch.arange(5)[:, None], 64)
    u = words_to_uniform(words).numpy()
    radius, angle = np.sqrt(-2.0 * np.log(u[..., 0::2])), 2.0 * np.pi * u[..., 1::2]
    expected = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1).reshape(u.shape)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert (np.abs(words_to_normal(words).numpy() - expected) / ulp).max() < 5.0


def test_extreme_words():
    words = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1, 0, 2**31, 2**32 - 1, 2**30]])
    normals = words_to_normal(words)
    assert torch.isfinite(normals).all()
    assert normals.abs().max() < 6.8
    uniform = words_to_uniform(words)
    assert float(uniform.min()) > 0.0 and float(uniform.max()) < 1.0


def test_normals_follow_the_normal_law():
    normals = philox_normal(11, torch.arange(4000), torch.arange(4)[:, None], 64, torch.float64)
    values = normals.flatten().numpy()
    assert stats.kstest(values, "norm").statistic < 1.63 / np.sqrt(values.size)
    moments = [values.mean(), values.var() - 1.0, (values**3).mean(), (values**4).mean() - 3.0]
    spread = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / values.size)
    assert (np.abs(moments) < 4.0 * spread).all()


def test_different_keys_are_uncorrelated():
    ids = torch.arange(4000)
    draws = torch.stack(
        [philox_normal(seed, ids, torch.tensor([step]), 16).flatten() for seed in (0, 1) for step in (0, 1)]
    )
    correlation = torch.corrcoef(draws.double()) - torch.eye(4)
    assert float(correlation.abs().max()) < 4.5 / draws.shape[1] ** 0.5


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=12)
@given(
    seed=st.integers(-(2**63), 2**64 - 1), n=st.integers(1, 300), rows=st.integers(0, 5), id_=st.integers(0, 2**62),
    step=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_backend_gives_the_same_bits(backend, seed, n, rows, id_, step):
    ids, steps = torch.arange(rows) + id_, torch.tensor([[step], [0]])
    with use_backend("reference"):
        words, normals = philox_words(seed, ids, steps, n), philox_normal(seed, ids, steps, n)
    with use_backend(backend), poisoned():
        assert torch.equal(philox_words(seed, ids, steps, n), words)
        assert torch.equal(philox_normal(seed, ids, steps, n), normals)
        assert torch.equal(philox_normal(seed, ids, steps, n, torch.float64), normals.double())
        assert torch.equal(philox_normal(seed, ids, steps, n, torch.float16), normals.half())


@pytest.mark.parametrize("backend", FAST)
def test_extreme_words_on_every_backend(backend):
    """A million words reach both branches of the logarithm, every quarter turn and the smallest u."""
    n = 1_000_000 if backend == "cpp" else 20_000
    with use_backend("reference"):
        wanted = philox_normal(8, torch.tensor([3]), torch.tensor([1]), n)
    with use_backend(backend):
        assert torch.equal(philox_normal(8, torch.tensor([3]), torch.tensor([1]), n), wanted)


def test_operators():
    ops = torch.ops.pgraft_fast
    words = [(torch.arange(3), torch.arange(3) + step, 7, 5) for step in (0, 9)]
    check_operator(ops.philox_words.default, ops.philox_words.default, words)
    normals = [(*arguments, torch.float16) for arguments in words]
    check_operator(ops.philox_normal.default, ops.philox_normal.default, normals)
