"""Batches that fit: halved when memory is full."""

import pytest
import torch

from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune.memory import BatchSize


def test_halves_until_it_fits_and_remembers():
    reported_sizes, tried_sizes = [], []
    size = BatchSize(16, "sampling", reported_sizes.append)

    def work(rows):
        tried_sizes.append(rows)
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert size.run(work) == 4 and size.value == 4 and reported_sizes == [8, 4]
    assert size.run(work) == 4 and tried_sizes == [16, 8, 4, 4]


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSize(4).run(lambda size: (_ for _ in ()).throw(RuntimeError("shapes do not match")))


def test_one_row_too_much():
    def work(size):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nmore")

    with pytest.raises(PgraftError, match=r"training: one row does not fit into memory \(CUDA out of memory. Tried"):
        BatchSize(2, "training").run(work)
