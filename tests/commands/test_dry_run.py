"""--dry-run tells what a run would take, whether it fits, and leaves no trace."""

import json

import pytest
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.commands.config import read_config
from pgraft_fast.commands.dry_run import rounds_that_fit
from pgraft_fast.finetune.cost import Estimate


def test_a_plan_and_nothing_else(tmp_path, capsys):
    config = tiny_config(tmp_path, rounds=2)
    before = sorted(tmp_path.rglob("*"))
    assert main(["finetune", str(config), "--dry-run", "--json", "-"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert (plan["rounds"], plan["rounds_asked"], plan["fits"], plan["why"]) == (2, 2, True, None)
    # 16 samples of 4 steps, and 6 steps of 8 rows, each counted three times.
    assert (
        plan["round"]["model_calls"] == 16 * 4 + 3 * 6 * 8 and plan["model_calls"] == 2 * plan["round"]["model_calls"]
    )
    assert plan["seconds"] == pytest.approx(2 * plan["round"]["seconds"] + plan["evaluation_seconds"], abs=0.01)
    assert plan["peak_memory_mb"] > 50
    assert "everything fits the budget" in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_budget_that_is_too_small(tmp_path, capsys):
    config = tiny_config(tmp_path, rounds=5, more="[budget]\nmodel_calls = 450\n")
    assert main(["finetune", str(config), "--dry-run"]) == 0
    assert "budget: 450 model calls, a round needs 208: 2 rounds fit" in capsys.readouterr().err
    config = tiny_config(tmp_path, more="[budget]\nmodel_calls = 200\n")
    assert main(["finetune", str(config), "--dry-run"]) == 2
    assert "a round needs 208: not one round fits; raise [budget] or lower" in capsys.readouterr().err


def test_the_tighter_limit_counts(tmp_path):
    config = read_config(tiny_config(tmp_path, rounds=9, more="[budget]\nwall_seconds = 100\nmodel_calls = 1000\n"), {})
    estimate = Estimate(sample=8.0, score=1.0, train=1.0, model_calls=100)
    assert rounds_that_fit(config, estimate, evaluation=10.0) == (
        7, "budget: 100 s, of which 23.0 s are for evaluation"
    )  # fmt: skip
    assert rounds_that_fit(config, Estimate(1.0, 0.0, 0.0, 400), 1.0)[0] == 2
    assert rounds_that_fit(config, Estimate(1.0, 0.0, 0.0, 100), 1.0) == (9, None)
