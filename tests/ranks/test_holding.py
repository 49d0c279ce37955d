"""What a rank would hold of a large network, that has no memory here."""

import pytest
import torch
from sharded_nets import Blocks, blocks

from pgraft_fast.ranks.holding import holding_full, holding_lora, sharding_of


@pytest.fixture(scope="module")
def large():
    """3.6 billion weights, 30 blocks, in bfloat16."""
    with torch.device("meta"):
        return Blocks(width=4480, blocks=30).to(torch.bfloat16)


def test_sharing_divides_what_is_held(large):
    count = sum(weight.numel() for weight in large.parameters())
    alone = holding_full(large)
    # Reference 2, weights 2 with masters 4, gradient 4, moments 8, average 2 with masters 4.
    assert alone.kept == alone.total == 26 * count
    on_8 = holding_full(large, 8, sharded=True)
    # Shares are masters: 2 + 4 + 4 + 8 + 4; to what rows there are more than a share.
    assert on_8.kept == pytest.approx(22 / 8 * count, rel=1e-3)
    assert holding_full(large, 8, sharded=True, averages=2).kept == pytest.approx(24 / 8 * count, rel=1e-3)
    # What is around the blocks, and two of thirty, each with its message, gradient and the message of that.
    around = sum(weight.numel() for part in (large.into, large.out) for weight in part.parameters())
    assert on_8.together == pytest.approx((2 + 2 + 2 + 4) * (around + 2 / 30 * (count - around)), rel=1e-3)
    assert "on each of 8 ranks: base" in str(on_8) and "masters" in str(alone)


def test_a_lora_is_whole_on_each_rank(large):
    count = sum(weight.numel() for weight in large.parameters())
    lora = [torch.empty(16, 4480, dtype=torch.bfloat16, device="meta") for _ in range(240)]
    trained = sum(weight.numel() for weight in lora)
    # Weights, gradient, two moments and average, in float32.
    assert holding_lora(large, lora).kept == 2 * count + 20 * trained
    on_8 = holding_lora(large, lora, 8, sharded=True)
    assert on_8.kept == pytest.approx(2 / 8 * count + 20 * trained, rel=1e-3)
    assert on_8.weights == 4 * trained and on_8.masters == 0


def test_when_to_share():
    alone = holding_full(blocks())
    plenty, scarce = 3 * alone.total, 1.5 * alone.total
    assert not sharding_of("auto", alone, plenty, 8) and sharding_of("auto", alone, scarce, 8)
    assert sharding_of("always", alone, plenty, 8) and not sharding_of("never", alone, scarce, 8)
    # One rank has all of it.
    assert not sharding_of("always", alone, scarce, 1)
