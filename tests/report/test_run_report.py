"""The first line of a run's report: the method by its name, and what its cut is."""

import json
from html import unescape

import pytest
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.report.run_report import quality_section
from pgraft_fast.tasks.digits import DigitsSettings, digits_task


@pytest.mark.parametrize(
    ("method", "lead"),
    [
        ("pgraft", "P-GRAFT, cut 0.25 of the steps, a log-SNR of {level:.2f}, objective state, 1 round(s)"),
        ("graft", "GRAFT, objective state, 1 round(s)"), ("nft", "DiffusionNFT, 1 round(s)"),
        ("ddpo", "DDPO, importance, 1 round(s)"),
    ],
)  # fmt: skip
def test_the_method_and_its_cut(tmp_path, method, lead):
    config = tiny_config(tmp_path, rounds=1)
    config.write_text(f'method = "{method}"\n' + config.read_text().replace('method = "pgraft"\n', ""))
    assert main(["finetune", str(config)]) == 0
    (page,) = tmp_path.rglob("report/index.html")
    level = digits_task(DigitsSettings()).schedule.cut_logsnr(0.25)
    assert lead.format(level=level) in page.read_text()


def test_a_training_that_diverged_is_told(tmp_path, capsys):
    config = tiny_config(tmp_path)
    # Far too much, so that six steps are enough.
    faster = 'objective = "contrast"\nlearning_rate = 0.1'
    config.write_text(config.read_text().replace("learning_rate = 1e-3", faster))
    assert main(["finetune", str(config)]) == 0
    rounds = json.loads((tmp_path / "run" / "result.json").read_text())["rounds"]
    (page,) = tmp_path.rglob("report/index.html")
    text, printed = unescape(page.read_text()), " ".join("".join(capsys.readouterr()).split())
    assert len(rounds) == 2 and "lower train.learning_rate" in rounds[0]["warning"]
    for number, entry in enumerate(rounds, 1):
        assert (f"Round {number}: contrast may have diverged" in text) == ("warning" in entry)
    assert f"round 1: {rounds[0]['warning']}" in printed


def test_measures_of_a_task_stand_in_the_table():
    row = {
        "reward": 0.5,
        "reward_ci": [0.4, 0.6],
        "fd_accepted": None,
        "fd_data": 2.0,
        "precision": None,
        "recall": None,
    }
    plain = quality_section({"before": row, "after": row}).table
    shown = quality_section({"before": {**row, "measures": {"stable %": 22.7431, "distinct": 1.0}}}).table
    assert plain.rows[1] == ["after", "0.5000", "0.4000 to 0.6000", "-", "2.00", "-", "-"]
    assert shown.header == [*plain.header, "stable %", "distinct"]
    assert shown.rows == [["before", *plain.rows[0][1:], "22.74", "1"]]
