"""The demo, small: the promised JSON, the table, the report in a browser."""

import json
from dataclasses import replace

import pytest
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.commands.demo import DemoSettings, run_demo
from pgraft_fast.finetune import SampleSettings, SelectSettings, TrainSettings
from pgraft_fast.report.demo_table import row_name
from pgraft_fast.runs.terminal import Terminal

pytestmark = pytest.mark.slow

SMALL = DemoSettings(
    seeds=2,
    sample=SampleSettings(prompts=10, candidates=8, steps=6),
    train=TrainSettings(steps=8, batch_size=32, learning_rate=1e-3),
    samples=80,
    reference_samples=160,
)
KEYS = {
    "method", "cut", "seed", "reward", "reward_ci", "fd_accepted", "fd_data", "precision", "recall", "model_calls",
    "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(SMALL, out, Terminal())


def test_rows(demo):
    out, result = demo
    assert set(result) == {"seconds", "peak_rss_mb", "rows"}
    assert result == json.loads((out / "demo.json").read_text())
    rows = result["rows"]
    assert all(set(row) == KEYS for row in rows)
    assert [(row["method"], row["cut"], row["seed"]) for row in rows] == [
        (method, cut, seed)
        for seed in (0, 1)
        for method, cut in (("base", 0.0), ("graft", 0.0), ("p-graft", 0.25), ("p-graft", 0.5), ("p-graft", 0.75))
    ]
    calls = {row["model_calls"] for row in rows if row["method"] != "base"}
    assert calls == {10 * 8 * 6 + 3 * 8 * 32}
    for seed in (0, 1):
        base, graft = (next(r for r in rows if r["method"] == m and r["seed"] == seed) for m in ("base", "graft"))
        assert graft["reward"] > base["reward"]


def test_demo_is_reproducible(demo, tmp_path):
    again = run_demo(replace(SMALL, seeds=1), tmp_path, Terminal())["rows"]
    for row, other in zip(demo[1]["rows"], again, strict=False):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_a_rule_that_drops_copies(tmp_path):
    """The best of each group, and each method with the copies kept: all of the same candidates."""
    select = SelectSettings(rule="binary", threshold=0.8)
    result = run_demo(
        replace(SMALL, seeds=1, cuts=(0.0, 0.5), copies_cuts=(0.0, 0.5), select=select), tmp_path, Terminal()
    )
    names = ["base", "best of N", "graft", "p-graft 0.5", "graft, copies kept", "p-graft 0.5, copies kept"]
    assert [row_name(row) for row in result["rows"]] == names
    best, *trained = result["rows"][1:]
    assert best["reward"] > result["rows"][0]["reward"] and best["model_calls"] == 10 * 8 * 6
    assert len({row["model_calls"] for row in trained}) == 1
    # No two digits are the same bit for bit.
    assert trained[0]["reward"] == trained[2]["reward"] and trained[1]["reward"] == trained[3]["reward"]


def test_report(demo, browse):
    browse(demo[0] / "report" / "index.html", pictures=9)
    assert (demo[0] / "report" / "samples-graft.png").exists()


def test_run_report(tmp_path, browse):
    assert main(["finetune", str(tiny_config(tmp_path))]) == 0
    browse(tmp_path / "run/report/index.html", pictures=7)
