"""Parts of batches that are as many on every rank."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.ranks.turns import even_parts


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 4))
def test_even_parts(counts, size):
    edges = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
    bounds = list(pairwise(edges))
    parts = [even_parts(bounds, rank, size) for rank in range(len(counts))]
    assert {len(of_rank) for of_rank in parts} == {-(-max(counts) // size)}
    # Every row counts once, on its rank; those that do not are rows that are there.
    for (low, high), of_rank in zip(bounds, parts, strict=True):
        assert [row for first, end, counts in of_rank if counts for row in range(first, end)] == list(range(low, high))
        assert all(0 <= first < end <= sum(counts) and end - first <= size for first, end, _ in of_rank)


def test_no_rows():
    with pytest.raises(ValueError, match="no rank has a row"):
        even_parts([(0, 0), (0, 0)], 0, 2)
