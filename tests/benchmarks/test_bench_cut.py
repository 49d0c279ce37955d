"""The benchmark of cuts, small: every cut has its training, and what was predicted stands beside it."""

import math

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")

from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast_benchmarks import bench_cut
from pgraft_fast_benchmarks.harness import Settings


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        "digits symmetry", "digits low levels few",
        *(pytest.param(world, marks=pytest.mark.faults) for world in ("digits 3 rounds", "shapes sd3")),
    ],
)  # fmt: skip
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
        several = "rounds" in world
        assert row["rounds"] == (3 if several else 1)
        assert several == (row["reached"] != row["reached_first"])
        if several or row["predicted"] is None:
            assert row["inside"] is None
        else:
            assert row["inside"] == (row["predicted_low"] <= row["reached"] <= row["predicted_high"])
    assert rows[0]["share_kept"] == 1.0 and sum(row["planned"] for row in rows) <= 1
    # A cut of nine tenths leaves next to nothing to the trained model.
    assert abs(rows[-1]["reached"] - rows[-1]["base"]) <= abs(rows[0]["reached"] - rows[0]["base"]) + 0.1


def test_low_levels_lie_densely_and_the_model_is_the_same():
    task = digits_task(DigitsSettings(variant="vp"))
    low = bench_cut._at_low_levels(task)
    x, label = torch.randn(3, *task.shape), torch.tensor([1, 4, 7])
    u = torch.tensor([0.2, 0.5, 0.9])
    # Half of the steps lie below a quarter of the model's time.
    assert_close(low.schedule.logsnr(u), task.schedule.logsnr(u.square()), rtol=1e-4, atol=1e-4)
    assert_close(low.model(x, u, label), task.model(x, u.square(), label), rtol=1e-4, atol=1e-4)
