"""`pgraft-fast plan`, and runs that choose their cut: table, report, what later commands make of it."""

import json

import pytest
from pipeline_runs import config_file
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.commands.finetune import read_run
from pgraft_fast.pipelines.adapters.loading import read_adapter

pytestmark = pytest.mark.slow


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def larger():
    """Of tiny_config: enough candidates to tell something of."""
    return {"prompts": 120, "candidates": 8, "steps": 12}


def with_cut(config, cut, sample=None):
    text = config.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("cut")]
    place = lines.index("[train]")
    lines.insert(place + 1, f"cut = {cut}")
    for key, value in (sample or {}).items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[place] = f"{key} = {value}"
    config.write_text("\n".join(lines) + "\n")
    return config


def test_the_plan_of_a_config(tmp_path, capsys, browse, larger):
    config = with_cut(tiny_config(tmp_path), 0.3, larger)
    assert main(["plan", str(config), "--json", "-"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert plan["reason"].startswith("The cut is ") and plan["reason"][:40] in captured.err and plan["share"] <= 0.15
    assert [outlook["cut"] for outlook in plan["outlooks"]] == [0.0, 0.1, 0.25, 0.5]
    assert "in the config; report: " in captured.err and "share kept" in captured.err
    (page,) = tmp_path.rglob("plan/index.html")
    assert json.loads((page.parent / "plan.json").read_text()) == plan
    assert plan["levels"] is not None
    browse(page, pictures=2)


def test_a_run_that_chooses_its_cut(tmp_path, capsys, larger):
    config = with_cut(tiny_config(tmp_path, rounds=1), '"auto"', larger)
    assert main(["finetune", str(config), "--json", str(tmp_path / "told.json")]) == 0
    result = json.loads((tmp_path / "told.json").read_text())
    plan = result["cut_plan"]
    assert plan["reason"][:40] in capsys.readouterr().err
    run, _, read = read_run(result["config"]["run"])
    assert read.cut == plan["cut"] == result["config"]["train"]["cut"]
    assert plan["reason"] in (run / "report" / "index.html").read_text()
    # It stays, also where the run is made longer; and later commands know it.
    config = with_cut(tiny_config(tmp_path, rounds=2), '"auto"', larger)
    assert main(["finetune", str(config), "--json", str(tmp_path / "told.json")]) == 0
    assert json.loads((tmp_path / "told.json").read_text())["cut_plan"] == plan
    assert main(["sample", str(run), "--n", "2", "--out", str(tmp_path / "s.png")]) == 0
    assert main(["report", str(run)]) == 0
    # A run of an earlier version, whose plan has the sentence under "told".
    result = json.loads((run / "result.json").read_text())
    result["cut_plan"]["told"] = result["cut_plan"].pop("reason")
    (run / "result.json").write_text(json.dumps(result))
    (run / "report" / "index.html").unlink()
    assert main(["report", str(run)]) == 0
    assert plan["reason"] in (run / "report" / "index.html").read_text()


def test_an_adapter_knows_the_cut_that_was_chosen(tmp_path):
    config = with_cut(config_file(tmp_path, rounds=1), '"auto"')
    assert main(["finetune", str(config), "--json", str(tmp_path / "told.json")]) == 0
    plan = json.loads((tmp_path / "told.json").read_text())["cut_plan"]
    # Eight accepted candidates tell nothing.
    assert "The plan cannot tell: only 8 candidates were accepted" in plan["reason"] and plan["cut"] == 0.25
    assert read_adapter(tmp_path / "run/adapter")[1].cut == 0.25
    assert main(["evaluate", str(tmp_path / "run"), "--samples", "4"]) == 0


@pytest.mark.parametrize(
    ("cut", "method", "message"),
    [
        ('"best"', "pgraft", "train.cut = 'best': input should be a share of the steps in [0, 1), or \"auto\""),
        ("0.3", "ddpo", "method='ddpo' has no cut to plan; set it to 'pgraft' or 'graft'"),
        ("0.3", "pgraft", "plan: 15% of a run of 416 model calls have no room for two prompts; plan a larger run"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, cut, method, message):
    config = with_cut(tiny_config(tmp_path), cut)
    config.write_text(f'method = "{method}"\n' + config.read_text())
    assert main(["plan", str(config)]) == 2
    assert message in one_line(capsys)
