"""Copies over a whole round, against a loop."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.selection import first_of_copies

ROWS = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=20)


@given(ROWS, st.randoms(use_true_random=False), st.none() | st.lists(st.integers(-3, 3), max_size=4))
def test_the_first_of_each(rows, random, taken):
    ids = random.sample(range(1 << 40), len(rows))
    seen, wanted = set(taken or []), [False] * len(rows)
    for _, row in sorted((number, row) for row, number in enumerate(ids)):
        eligible, copy = rows[row]
        if eligible and copy not in seen:
            seen.add(copy)
            wanted[row] = True
    got = first_of_copies(
        torch.tensor([eligible for eligible, _ in rows], dtype=torch.bool),
        torch.tensor([copy for _, copy in rows], dtype=torch.int64),
        torch.tensor(ids, dtype=torch.int64),
        None if taken is None else torch.tensor(taken, dtype=torch.int64),
    )
    assert got.tolist() == wanted
