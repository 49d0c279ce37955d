"""Run on each rank by test_ranks.py: everything that ranks tell each other, as JSON on stdout."""

import json
import sys

import torch

from pgraft_fast.errors import InputError, PgraftError
from pgraft_fast.ranks.start import joined


def rows_of(rank, dtype, width):
    return (torch.arange(rank * width).view(rank, width) + 10 * rank).to(dtype)


def raised(work):
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def failing(ranks, error, where):
    with ranks.together():
        if ranks.rank in where:
            raise error


def main():
    with joined() as ranks:
        size, rank = ranks.size, ranks.rank
        counts = list(range(size))
        told = {"gather": ranks.gather({"rank": rank, "text": "é" * rank})}
        for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.float64):
            found = ranks.rows(rows_of(rank, dtype, 3), counts)
            whole = torch.cat([rows_of(other, dtype, 3) for other in range(size)])
            told[str(dtype)] = bool(torch.equal(found, whole)) and found.dtype is dtype
        told["empty"] = list(ranks.rows(torch.empty(0, 2), [0] * size).shape)
        values = [
            torch.full((2, 2), float(rank + 1)),
            torch.tensor(2.0**-20, dtype=torch.float64),
            torch.ones(3).bfloat16(),
        ]
        ranks.add_up(values)
        told["sums"] = [value.flatten().tolist() for value in values]
        told["parts"] = [part.tolist() for part in ranks.all_of(torch.tensor([rank, 7]))]
        first = {"a": {"x": torch.arange(4).bfloat16()}, "b": {"": torch.tensor(3)}, "c": {}} if ranks.first else None
        sent = ranks.tensors_from_first(first)
        told["sent"] = [list(sent), sent["a"]["x"].float().tolist(), sent["b"][""].item(), str(sent["a"]["x"].dtype)]
        told["from first"] = ranks.from_first(lambda: {"rank": rank})
        told["all well"] = raised(lambda: failing(ranks, None, []))
        told["input"] = raised(lambda: failing(ranks, InputError("x=1: give 2"), [size - 1]))
        told["surprise"] = raised(lambda: failing(ranks, ZeroDivisionError("oh"), [0]))
        told["two"] = raised(lambda: failing(ranks, PgraftError("no"), [0, size - 1]))
        told["after errors"] = raised(ranks.check)
        told["first fails"] = raised(lambda: ranks.from_first(lambda: 1 / 0))
        told["equal"] = raised(lambda: ranks.check_equal([torch.ones(3)], "ones"))
        told["unequal"] = raised(lambda: ranks.check_equal([torch.full((3,), float(rank))], "the weights"))
        told["waited"] = ranks.waited > 0
    print(json.dumps(told))


sys.exit(main())
