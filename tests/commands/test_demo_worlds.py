"""The demos of other tasks than the digits, small."""

import json
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from pgraft_fast import cli
from pgraft_fast.commands.demo import DemoSettings, _lead, run_demo
from pgraft_fast.commands.demo_worlds import WORLDS
from pgraft_fast.report import demo_report
from pgraft_fast.report.demo_table import row_name
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.tasks.known import task_of


def test_the_command_knows_them_all():
    hint = get_type_hints(cli.demo)["what"]
    assert set(get_args(hint)) == {"digits", "shapes", *WORLDS}


@pytest.mark.parametrize("name", WORLDS)
def test_settings_fit_the_task(name):
    """Three seeds, P-GRAFT at two cuts beside GRAFT, with and without copies."""
    settings = WORLDS[name]
    assert settings.seeds == 3 and settings.cuts[0] == 0.0 and len(set(settings.cuts)) == 3
    assert set(settings.copies_cuts) <= set(settings.cuts) and any(settings.copies_cuts)
    rules = [(copies, cut, select.rule) for copies, cut, select in settings.trainings]
    assert rules == [
        *(("", cut, "binary") for cut in settings.cuts), *(("kept", cut, "threshold") for cut in settings.copies_cuts)
    ]  # fmt: skip
    task = task_of({**dict(settings.task), "reward": settings.reward})
    assert task.name == name and settings.reward in task.rewards and task.prompts.same is not None


def test_graft_has_a_strength_of_its_own():
    """Where training reaches the lowest noise."""
    settings = WORLDS["molecules"]
    assert [settings.of(0, cut).train.strength for cut in settings.cuts] == [1.0, 10.0, 10.0]
    assert settings.of(0, 0.05).train.model_copy(update={"strength": 1.0, "cut": 0.0}) == settings.of(0).train
    assert {WORLDS["layouts"].of(0, cut).train.strength for cut in WORLDS["layouts"].cuts} == {3.0}


def test_what_stands_above_the_table():
    assert "8 candidates a seed, those of at least 0.5 kept, 100 training steps" in _lead(WORLDS["molecules"])
    assert "16 candidates a seed, the best 4 of each kept, 200 training steps" in _lead(DemoSettings())


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_small_demo(name, tmp_path, monkeypatch):
    settings, groups = WORLDS[name], []
    plot = demo_report.histogram_png
    monkeypatch.setattr(demo_report, "histogram_png", lambda *given: groups.append(list(given[0])) or plot(*given))
    sample = settings.sample.model_copy(update={"prompts": 24, "steps": 12})
    training = settings.train.model_copy(update={"steps": 4, "batch_size": 16})
    small = replace(
        settings,
        seeds=1,
        cuts=(0.0, 0.5),
        copies_cuts=(0.0, 0.5),
        sample=sample,
        train=training,
        samples=64,
        reference_samples=256,
    )  # fmt: skip
    result = run_demo(small, tmp_path, Terminal())
    assert result == json.loads((tmp_path / "demo.json").read_text())
    names = ["base", "best of N", "graft", "p-graft 0.5", "graft, copies kept", "p-graft 0.5, copies kept"]
    rows = {row_name(row): row for row in result["rows"]}
    assert list(rows) == names and rows["best of N"]["reward"] > rows["base"]["reward"]
    assert all(set(row["measures"]) == set(rows["base"]["measures"]) for row in rows.values())
    assert groups == [["base", "accepted", "graft", "p-graft 0.5"]]
    assert (tmp_path / "report" / "samples-graft.png").exists()
