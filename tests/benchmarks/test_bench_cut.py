"""The benchmark of cuts, small: every cut has its training, and what was predicted stands beside it."""

import math

import pytest
import torch

pytest.importorskip("diffusers")

from pgraft_fast_benchmarks import bench_cut
from pgraft_fast_benchmarks.harness import Settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("world", ["digits symmetry", "shapes sd3"])
def test_rows(world):
    reported = []
    result = bench_cut.run(
        Settings(torch.device("cpu"), None, "smoke", world), lambda name, rows: reported.append(name)
    )
    assert world in reported and len(reported) <= 2
    rows = [row for row in result["rows"] if row["case"] == world]
    assert [row["cut"] for row in rows] == [0.0, *bench_cut.CUTS]
    for row in rows:
        assert 0.0 <= row["reached"] <= 1.0 and row["reached_low"] <= row["reached"] <= row["reached_high"]
        assert math.isfinite(row["fd_accepted"]) and row["plan_share"] <= 0.15
        if row["predicted"] is not None:
            assert row["inside"] == (row["predicted_low"] <= row["reached"] <= row["predicted_high"])
    assert rows[0]["share_kept"] == 1.0 and sum(row["planned"] for row in rows) <= 1
    # A cut of nine tenths leaves next to nothing to the trained model.
    assert abs(rows[-1]["reached"] - rows[-1]["base"]) <= abs(rows[0]["reached"] - rows[0]["base"]) + 0.1
