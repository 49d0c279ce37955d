"""Runs at drawn budgets: never over by more than a batch, the adapter is always there, the ledger adds up."""

import json
import random
from functools import partial

import pytest
from clock import Clock
from pipeline_runs import config_file

from pgraft_fast import report
from pgraft_fast.cli import main
from pgraft_fast.finetune import Ledger
from pgraft_fast.pipelines.adapters.loading import read_adapter
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.runs import run
from pgraft_fast.runs.sizing import SAFETY

pytestmark = pytest.mark.slow

pytest.importorskip("peft")

# Of one round of `config_file`: 16 samples of 4 guided steps, then 4 optimiser steps on 4 rows.
ROUND = 16 * 4 * 2 + 3 * 4 * 4
# Seconds of a network call and of a report, where the clock is turned.
CALL, REPORT = 0.1, 0.5
# Two batches of 4 steps and 4 optimiser steps; one batch of an evaluation, kept back with a margin.
ROUND_SECONDS = (2 * 4 + 4) * CALL
KEPT_SECONDS = SAFETY * (4 * CALL + REPORT)


def run_at(folder, budget, rounds=1000, top=""):
    config = config_file(folder, rounds=rounds, top=top, more=f"[budget]\n{budget}\n")
    status = main(["finetune", str(config), "--json", str(folder / "result.json")])
    return status, json.loads((folder / "result.json").read_text()) if status == 0 else None


def check(folder, result):
    spent = result["spent"]
    assert sum(spent["seconds"].values()) == pytest.approx(spent["total_seconds"], rel=5e-3)
    read_adapter(folder / "run/adapter")
    assert len(result["rounds"]) >= 1


def of_calls(tmp_path, seeds):
    for seed in seeds:
        calls = random.Random(seed).randint(ROUND, 6 * ROUND)
        folder = tmp_path / f"calls-{seed}"
        folder.mkdir()
        (folder / "sd").symlink_to(tmp_path / "sd")
        status, result = run_at(folder, f"model_calls = {calls}")
        assert status == 0
        check(folder, result)
        assert calls - ROUND < result["spent"]["model_calls"] <= calls


def of_seconds(tmp_path, seeds):
    for seed in seeds:
        seconds = 3.5 + 5.0 * random.Random(seed).random()
        folder = tmp_path / f"seconds-{seed}"
        folder.mkdir()
        (folder / "sd").symlink_to(tmp_path / "sd")
        status, result = run_at(folder, f"wall_seconds = {seconds}")
        assert status == 0
        check(folder, result)
        spent = result["spent"]["total_seconds"]
        # What was kept back for the evaluation and the report at the end may stay, and less than a slow round.
        assert seconds - ROUND_SECONDS - KEPT_SECONDS < spent <= seconds
        assert spent >= ROUND_SECONDS * len(result["rounds"])


@pytest.fixture
def model(tmp_path):
    config_file(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes with the work alone: 0.1 s a network call, 0.5 s a report."""
    clock = Clock()
    monkeypatch.setattr(run, "Ledger", partial(Ledger, clock=clock))
    monkeypatch.setattr(report, "report_seconds", lambda: REPORT)
    monkeypatch.setattr(report, "write_run_report", clock.during(report.write_run_report, REPORT))
    monkeypatch.setattr(Driven, "forward", clock.during(Driven.forward, CALL))
    return clock


@pytest.mark.usefixtures("model")
def test_some_budgets(tmp_path):
    of_calls(tmp_path, range(1))


@pytest.mark.usefixtures("model", "clock")
def test_some_budgets_of_time(tmp_path):
    of_seconds(tmp_path, range(1))


@pytest.mark.faults
@pytest.mark.usefixtures("model")
def test_fifty_budgets(tmp_path):
    of_calls(tmp_path, range(100, 130))


@pytest.mark.faults
@pytest.mark.usefixtures("model", "clock")
def test_twenty_budgets_of_time(tmp_path):
    of_seconds(tmp_path, range(200, 220))


@pytest.mark.usefixtures("model")
def test_a_budget_below_one_round(tmp_path, capsys):
    status, _ = run_at(tmp_path, f"model_calls = {ROUND - 1}")
    assert status == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"a round needs {ROUND} model calls, {ROUND - 1} are left: not one round fits" in line
