"""The inversion benchmark: gates, the plain iteration, and what the gate sees."""

import pytest
import torch

from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow
from pgraft_fast_benchmarks import bench_invert, bench_quality
from pgraft_fast_benchmarks.harness import Settings, measure

SMOKE = Settings(torch.device("cpu"), size="smoke")


def test_fewer_calls_than_the_plain_iteration():
    (case,) = bench_invert.cases(SMOKE)
    ours, plain = measure(case, SMOKE)
    assert ours["gate"] == plain["gate"] == "ok" and ours["inverted"] == 1.0 and ours["round_trip"] < 1e-5
    assert ours["calls_per_sample"] <= 0.75 * plain["calls_per_sample"]
    assert ours["samples_per_hour"] == pytest.approx(3.6e6 * 32 / ours["p50_ms"], rel=1e-3)


def test_the_gate_sees_another_noise(monkeypatch):
    right = bench_invert.invert

    def wrong(*args, **more):
        inversion = right(*args, **more)
        inversion.noise.mul_(1.001)
        return inversion

    monkeypatch.setattr(bench_invert, "invert", wrong)
    (case,) = bench_invert.cases(SMOKE)
    ours, plain = measure(case, SMOKE)
    assert ours["gate"] == "fail" and "the noise is 1.0e-03 off" in ours["note"] and plain["gate"] == "ok"


def test_the_plain_iteration_ends_at_the_fixed_point():
    model, x = load_mlp_flow(), dequantised("held_out", 8, 0)
    with torch.no_grad():
        noise, calls = bench_invert.plain_inverse(model, x, 4, 1e-6)
        for t in (1.0, 0.75, 0.5, 0.25):
            noise = noise - 0.25 * model(noise, torch.full((8,), t))
    assert torch.allclose(noise, x, atol=1e-5) and 8 < calls < 200


@pytest.mark.faults
def test_quality_rows():
    rows = bench_quality.run(SMOKE, lambda name, part_rows: None)["rows"]
    demo, distance = ([row for row in rows if row["op"] == op] for op in ("demo", "distance"))
    assert [row["provider"] for row in demo] == ["base", "graft", "p-graft"]
    for case, column in (("molecules", "stable"), ("layouts", "overlap_x100")):
        rows_of_case = [row for row in rows if row["op"] == "demo of sets" and row["case"] == case]
        assert [row["provider"] for row in rows_of_case] == ["base", "best of N", "graft", "graft, copies kept"]
        assert all(row[column] >= 0.0 for row in rows_of_case)
    for row in demo:
        assert row["reward_low"] < row["reward"] < row["reward_high"] and row["seed"] == 0
    # Two products of a multiply and an add each layer: 96 x 256, twice 256 x 256, 256 x 64.
    call = 2 * (96 * 256 + 2 * 256 * 256 + 256 * 64)
    steps = {(row["provider"], row["steps"], row["corrector_steps"]): row["flops_per_image"] for row in distance}
    assert steps == {
        ("base", 5, 0): 5 * call, ("base", 20, 0): 20 * call, ("trigonometric", 20, 5): 25 * call,
        ("linear", 20, 5): 25 * call, ("affine", 20, 1): 20 * call + 2 * 64 * 64,
    }  # fmt: skip
    for row in distance:
        assert row["inversion_failed"] == 0 and 0 < row["fd_floor"] < row["fd_data"] and row["swd"] > row["swd_floor"]
