"""The round benchmark: the plain round does the same work, and its gate sees where it does not."""

from dataclasses import replace

import pytest
import torch

from pgraft_fast.finetune import pgraft_loss
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast_benchmarks import bench_round, round_gpu
from pgraft_fast_benchmarks.harness import Settings, measure

pytestmark = pytest.mark.slow

SMOKE = Settings(torch.device("cpu"), size="smoke")


@pytest.fixture(scope="module")
def rows():
    return [row for case in bench_round.cases(SMOKE) for row in measure(case, SMOKE)]


def test_gates_are_green_and_rows_whole(rows):
    assert [(row["case"], row["provider"]) for row in rows] == [
        (f"digits {variant}", name) for variant in ("vp", "flow") for name in ("ours", "plain", "all rows", "ddpo")
    ]
    for row in rows:
        assert row["gate"] == "ok", row
        assert row["samples_per_hour"] == pytest.approx(3.6e6 * 64 / row["p50_ms"], rel=1e-3)
        assert {"batch", "steps", "samples_per_hour"} <= set(row)
        assert all(row[f"{part}_ms"] >= 0 for part in ("sample", "score", "accept", "train"))
        assert row["sample_ms"] > 0 and row["train_ms"] > 0


@pytest.mark.parametrize("variant", ["vp", "flow"])
def test_losers_cost_training_where_all_rows_are_trained_on(variant):
    """Rows that go through the trained model: ten passes over 8 kept ones of 64, or over all."""
    task, settings = digits_task(DigitsSettings(variant=variant)), bench_round.settings_of(variant, 4)
    plain, every = (
        bench_round._plain(task, settings, variant, SMOKE.device, compiled=False, all_rows=all_rows)
        for all_rows in (False, True)
    )
    ours = bench_round.OurRound(task, settings, SMOKE.device, "eager", task.reward("symmetry"))
    seen = {}
    models = {"ours": ours._learner.model, "plain": plain.tuned, "all rows": every.tuned}
    run = {"ours": ours.run, "plain": plain.run, "all rows": every.run}
    for name, model in models.items():
        rows = []
        called = ours._learner.run if name == "ours" else model
        called.register_forward_hook(lambda module, args, out, rows=rows: rows.append(len(out)))
        run[name]()
        seen[name] = sum(rows)
    assert seen == {"ours": 64, "plain": 64, "all rows": 640}


@pytest.mark.parametrize("variant", ["vp", "flow"])
def test_the_gate_sees_another_loss(variant, monkeypatch):
    task = digits_task(DigitsSettings(variant=variant))
    plain = bench_round._plain(
        task, bench_round.settings_of(variant, 4), variant, SMOKE.device, compiled=False, all_rows=False
    )
    assert bench_round._same_work(task, plain, variant, SMOKE.device) is None
    monkeypatch.setattr(bench_round, "pgraft_loss", lambda *args, **more: 1.01 * pgraft_loss(*args, **more))
    assert "the losses differ" in bench_round._same_work(task, plain, variant, SMOKE.device)


def test_the_gate_sees_another_law():
    rewards = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert bench_round._same_law(rewards, rewards.flip(0)) is None
    assert "standard errors off" in bench_round._same_law(rewards, rewards + 0.5)


def test_a_round_of_real_size_at_a_small_one():
    small = {
        "sample_size": 16, "block_out_channels": (16,) * 4, "attention_head_dim": 4, "cross_attention_dim": 16,
        "norm_num_groups": 8, "layers_per_block": 1,
    }  # fmt: skip
    (case,) = round_gpu.cases(SMOKE)
    rows = measure(replace(case, build=lambda settings: round_gpu.providers(4, settings, **small)), SMOKE)
    assert [(row["provider"], row["gate"]) for row in rows] == [("plain", "ok"), ("ours", "ok")], rows
    for row in rows:
        assert row["samples_per_hour"] > 0 and row["sample_ms"] > 0 and row["train_ms"] > 0
