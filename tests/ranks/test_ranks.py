"""What ranks tell each other arrives, and what one of them meets all of them raise."""

import itertools
import json
from pathlib import Path

import pytest
import ranked

from pgraft_fast.ranks.ranks import ALONE, Ranks

SCRIPT = Path(__file__).with_name("exchange.py")


@pytest.fixture(scope="module")
def told():
    """Of three ranks."""
    ended = ranked.run(3, [str(SCRIPT)])
    assert [status for status, _, _ in ended] == [0, 0, 0], ended
    return [json.loads(out) for _, out, _ in ended]


def test_rows_sums_and_decisions(told):
    for rank, of_rank in enumerate(told):
        assert of_rank["gather"] == [{"rank": other, "text": "é" * other} for other in range(3)]
        dtypes = [name for name in of_rank if name.startswith("torch.")]
        assert len(dtypes) == 5 and all(of_rank[name] for name in dtypes)
        assert of_rank["empty"] == [0, 2]
        assert of_rank["sums"] == [[6.0] * 4, [3 * 2.0**-20], [3.0] * 3]
        assert of_rank["parts"] == [[other, 7] for other in range(3)]
        assert of_rank["sent"] == [["a", "b", "c"], [0.0, 1.0, 2.0, 3.0], 3, "torch.bfloat16"]
        assert of_rank["from first"] == {"rank": 0}
        assert of_rank["all well"] is None and of_rank["equal"] is None
        assert of_rank["waited"], rank


def test_errors_of_one_are_errors_of_all(told):
    for rank, of_rank in enumerate(told):
        assert of_rank["input"] == ["InputError", "rank 2: x=1: give 2"]
        assert of_rank["two"] == ["PgraftError", "rank 0: no"]
        heard = ["RankError", "rank 0: unexpected ZeroDivisionError: oh"]
        # The one that met it keeps its traceback.
        assert of_rank["surprise"] == (["ZeroDivisionError", "oh"] if rank == 0 else heard)
        # All have heard of them, and may go on.
        assert of_rank["after errors"] is None
        assert of_rank["first fails"][0] == ("ZeroDivisionError" if rank == 0 else "RankError")
        assert of_rank["unequal"][0] == "RankError" and "the weights of rank 1" in of_rank["unequal"][1]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("total", "unit"), [(0, 1), (5, 1), (64, 8), (60, 16), (7, 3)])
def test_shares(size, total, unit):
    shares = [Ranks(rank, size).part(total, unit) for rank in range(size)]
    assert shares[0][0] == 0 and shares[-1][1] == total
    assert all(high == low for (_, high), (low, _) in itertools.pairwise(shares))
    # Whole units, and no rank has two more than another.
    assert all(low % unit == 0 for low, _ in shares if low < total)
    units = [-(-(high - low) // unit) for low, high in shares]
    assert max(units) - min(units) <= 1


def test_alone():
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError
    assert ALONE.gather(1) == [1] and ALONE.from_first(lambda: 2) == 2
