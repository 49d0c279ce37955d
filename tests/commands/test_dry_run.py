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


def test_ranks_share_the_work(tmp_path):
    """Of device-hours each has a part; wall time is everybody's."""
    estimate = Estimate(sample=8.0, score=1.0, train=1.0, model_calls=100)
    wall = read_config(tiny_config(tmp_path, rounds=99, more="[budget]\nwall_seconds = 100\n"), {})
    # 400 s of four devices, of which 23 are for evaluation on one of them.
    assert rounds_that_fit(wall, estimate, evaluation=10.0, ranks=4) == (
        37, "budget: 100 s, of which 5.75 s are for evaluation"
    )  # fmt: skip
    hours = read_config(tiny_config(tmp_path, rounds=99, more="[budget]\ngpu_hours = 0.1\n"), {})
    assert [rounds_that_fit(hours, estimate, 10.0, ranks)[0] for ranks in (1, 4)] == [33, 33]


@pytest.mark.slow
def test_what_each_rank_would_hold(tmp_path, capsys):
    """A LoRA's base is dealt, but for what is put together for a call."""
    path = tmp_path / "config.toml"
    path.write_text(
        'run = "run"\n[model]\nshipped = "sd"\n[[rewards]]\nkind = "task"\nname = "questions"\n'
        "[sample]\nprompts = 4\nsteps = 4\n[train]\nsteps = 2\n[evaluate]\nsamples = 8\n"
    )
    assert main(["finetune", str(path), "--gpus", "4", "--dry-run", "--json", "-"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert plan["ranks"] == 4 and 0 < plan["held_mb"]["always"] < plan["held_mb"]["never"]
    assert "shard = 'always': each of 4 ranks holds" in captured.err
    assert not (tmp_path / "run").exists()


def test_shard_belongs_to_pipelines(tmp_path, capsys):
    config = tiny_config(tmp_path)
    config.write_text('shard = "always"\n' + config.read_text())
    assert main(["finetune", str(config)]) == 2
    assert "shard" in capsys.readouterr().err
