"""The comparison of methods, small: equal budgets, the same held-out samples, half of the rows half of the steps."""

import pytest
import torch

pytest.importorskip("diffusers")

from pgraft_fast.commands.comparison import ComparisonSettings
from pgraft_fast.errors import InputError
from pgraft_fast_benchmarks import bench_methods
from pgraft_fast_benchmarks.harness import Settings

pytestmark = pytest.mark.slow


@pytest.mark.faults
def test_rows():
    reported = []
    rows = bench_methods.run(
        Settings(torch.device("cpu"), None, "smoke"), lambda name, part_rows: reported.append(name)
    )["rows"]
    # The base and both methods, each as soon as it is done.
    assert reported == ["kept", "seed 0 pgraft 2000", "seed 0 pgraft 2000", "seed 0 ddpo 2000"]
    kept = {row["kept"]: row for row in rows if row["op"] == "kept"}
    assert kept[2]["optimizer_steps"] == 1 and kept[1]["optimizer_steps"] == 1 and kept[2]["share_of_time"] == 1.0
    methods = {row["provider"]: row for row in rows if row["op"] == "methods"}
    assert list(methods) == ["base", "pgraft", "ddpo"]
    assert methods["base"]["gain"] is None and methods["base"]["reward"] == methods["pgraft"]["base"]
    for name in ("pgraft", "ddpo"):
        row = methods[name]
        assert 0 < row["model_calls"] <= row["budget"] and row["cpu_seconds"] > 0
        assert row["gain"] == pytest.approx(row["reward"] / row["base"] - 1.0, abs=1e-6)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]


@pytest.mark.parametrize("budget", [40_000, 80_000, 160_000])
def test_runs_fill_their_budget(budget, tmp_path):
    for method in ("pgraft", "graft", "graft-clean:all", "ddpo"):
        config = ComparisonSettings().of(method, budget, 0, tmp_path)
        rounds = config.train.rounds
        calls = rounds * config.calls(config.sample.steps, 2)
        # A round of DDPO is 19,712 calls; the other two are sized to the step.
        assert budget - 20_000 < calls <= budget
        assert method == "ddpo" or calls > budget - 600


@pytest.mark.parametrize("method", ["pgraft", "ddpo"])
def test_too_small_a_budget_is_refused(method, tmp_path):
    with pytest.raises(InputError, match="budget of 100 model calls: too little for a"):
        ComparisonSettings().of(method, 100, 0, tmp_path)
