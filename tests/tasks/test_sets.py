"""What molecules and layouts have in common."""

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.sets import device_of, spread


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1000])
def test_an_order_whose_beginnings_are_even(n):
    """Of the first m, no tenth of the range has many more than its share."""
    order = spread(n)
    assert order.sort().values.tolist() == list(range(n))
    for m in (n // 10, n // 3, n // 2):
        counts = torch.histc(order[:m].to(torch.float64), 10, 0, n)
        assert float((counts - m / 10).abs().max()) <= 2.0


def test_devices():
    assert device_of("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert device_of("auto") == "cpu"
        with pytest.raises(InputError, match="device='cuda': there is none; set device='auto'"):
            device_of("cuda")
