"""The benchmark command at tiny sizes: gates green, rows whole; and the harness on made-up providers."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clock import Clock

from pgraft_fast.cli import main
from pgraft_fast_benchmarks import bench_ops, gates, show
from pgraft_fast_benchmarks.goals import GOALS
from pgraft_fast_benchmarks.harness import Case, Provider, Settings, measure
from pgraft_fast_benchmarks.timing import CpuTimer, percentile

ROOT = Path(__file__).parents[2]
SMOKE = Settings(torch.device("cpu"), size="smoke")
KEYS = {
    "op", "case", "shape", "dtype", "provider", "gate", "p50_ms", "p20_ms", "p80_ms", "times_ours", "readings", "bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(JSON, CSV rows) of the command."""
    folder = tmp_path_factory.mktemp("bench")
    paths = [folder / "ops.json", folder / "ops.csv"]
    assert main(["bench", "ops", "--smoke", "--json", str(paths[0]), "--csv", str(paths[1])]) == 0
    with open(paths[1], newline="") as file:
        return json.loads(paths[0].read_text()), list(csv.DictReader(file))


def test_every_gate_is_green_and_every_row_whole(result):
    data, _ = result
    assert data["failed"] == 0 and data["size"] == "smoke"
    for row in data["rows"]:
        assert row["gate"] == "ok", row
        # A whole network has no least traffic.
        assert set(row) - {"note"} == (KEYS - {"bytes"} if row["op"] == "lora" else KEYS)
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert all(isinstance(size, int) for size in row["shape"])


def test_who_is_compared(result):
    data, _ = result
    providers = {}
    for row in data["rows"]:
        providers.setdefault((row["op"], row["case"], row["dtype"]), set()).add(row["provider"])
    for name in ("ddim", "ddim eta=1", "ddpm", "dpmpp_2m"):
        assert providers["solver_step", name, "float32"] == {"ours", "diffusers", "eager", "copy"}
    assert providers["reward_filter", "top 4", "float32"] >= {"ours", "torch", "torch.topk", "torch.sort"}
    assert providers["reward_filter", "top 4 + gather", "float32"] == {"ours", "torch", "copy", "copy_preallocated"}
    assert all("ours" in names for names in providers.values())


def test_it_tells_where_it_was_measured(result):
    data, rows = result
    assert data["device"] and data["threads"] == 2
    assert data["versions"]["torch"] == torch.__version__
    assert data["commit"] is None or len(data["commit"]) == 40
    assert len(rows) == len(data["rows"])
    for line, row in zip(rows, data["rows"], strict=True):
        assert line["shape"] == "x".join(map(str, row["shape"]))
        assert float(line["p50_ms"]) == row["p50_ms"]
        assert line["device"] == data["device"] and line["diffusers"] == data["versions"]["diffusers"]


def test_goals_name_cases_that_exist():
    known = {(case.op, case.case, case.shape) for case in bench_ops.cases(Settings(torch.device("cpu")))}
    assert {(goal.op, goal.case, goal.shape) for goal in GOALS} <= known
    assert len(GOALS) == 12


def test_goals_are_judged_in_their_sense():
    goal, near = GOALS[:2]
    rows = [row(goal, "ours", 1.0), row(goal, "diffusers", 13.0), row(goal, "copy", 0.3)]
    assert goal.ratio(rows) == 13.0 and goal.met(13.0) and not goal.met(11.9)
    assert near.ratio(rows) == pytest.approx(1 / 0.3) and not near.met(1 / 0.3) and near.met(2.9)
    assert goal.ratio(rows[:1]) is None and goal.ratio([row(goal, "ours", None), rows[1]]) is None
    shown = show.goals({"rows": rows}, GOALS)[1]
    assert [line[1:] for line in shown] == [
        ["12x diffusers", "13.00x", "met"],
        ["within 3x copy", "3.33x", "missed"],
    ]


def row(goal, provider, time):
    return {
        "op": goal.op, "case": goal.case, "shape": list(goal.shape), "dtype": "float32", "provider": provider,
        "gate": "ok", "p50_ms": time,
    }  # fmt: skip


def test_percentiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx(
        [1.0, 1.8, 3.0, 4.2, 5.0]
    )
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile([7.0], 0.2) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_short_calls_are_read_many_at_once(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("pgraft_fast_benchmarks.timing.time", clock)
    called = []
    run = clock.during(lambda: called.append(1), 1e-6)
    timer = CpuTimer(at_least=1e-3)
    calls = timer.repeats(run)
    assert 1000 <= calls <= 2000
    called.clear()
    assert timer.read(run, calls) == pytest.approx(1e-6)
    assert len(called) == calls


def made_up(*providers, **more):
    return Case("op", "case", (3,), "float32", 12, lambda settings: providers, **more)


def test_a_red_gate_has_no_times():
    ran = []
    wrong = Provider("wrong", lambda: ran.append(1), lambda: gates.same([torch.ones(3)], [torch.zeros(3)]))
    right = Provider("ours", lambda: None, lambda: None)
    red, green = measure(made_up(wrong, right), SMOKE)
    assert red["gate"] == "fail" and red["note"] == "output 0 differs" and ran == []
    assert [red[key] for key in ("p50_ms", "p20_ms", "p80_ms")] == [None] * 3
    assert green["gate"] == "ok" and green["p50_ms"] > 0


def test_a_red_gate_is_the_exit_status(monkeypatch, capsys):
    wrong = Provider("ours", lambda: None, lambda: "wrong by 1")
    monkeypatch.setattr(bench_ops, "cases", lambda settings: [made_up(wrong)])
    assert main(["bench", "ops", "--smoke"]) == 1
    assert "ours fail: wrong by 1" in capsys.readouterr().err


def test_what_cannot_run_is_skipped_only_where_that_is_allowed():
    def broken():
        raise RuntimeError("no compiler\nmore")

    optional = Provider("compile", broken, broken, optional=True)
    (skipped,) = measure(made_up(optional), SMOKE)
    assert (skipped["gate"], skipped["note"], skipped["p50_ms"]) == ("skipped", "RuntimeError: no compiler", None)
    with pytest.raises(RuntimeError, match="no compiler"):
        measure(made_up(Provider("ours", broken, broken)), SMOKE)


def test_resets_stay_outside_and_steps_divide():
    events = []
    provider = Provider(
        "diffusers", lambda: events.append("run"), lambda: None, steps=4, reset=lambda: events.append("reset")
    )  # fmt: skip
    (measured,) = measure(made_up(provider), SMOKE)
    assert measured["gate"] == "ok"
    assert events[0] == "reset" and "run,run" not in ",".join(events)
    # A reading is a run before it and the timed one; the plan takes one reading too.
    assert events.count("run") == 2 * (measured["readings"] + 1)


def test_the_faster_of_several_gets_a_row():
    slow = Provider("slow", lambda: sum(range(20_000)), lambda: None)
    fast = Provider("fast", lambda: None, lambda: None)
    rows = measure(made_up(slow, fast, best_of={"torch": ("slow", "fast")}), SMOKE)
    assert rows[2]["provider"] == "torch" and rows[2]["p50_ms"] == rows[1]["p50_ms"]
    assert rows[2]["note"] == "the faster one, fast"


def test_gates_see_small_errors():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    exact = x.double()
    assert gates.held([x], [x], [exact]) is None
    assert "error" in gates.held([x * (1 + 1e-6)], [x], [exact])
    assert gates.near([x], [exact]) is None
    assert "error" in gates.near([x + 1e-3], [exact])
    assert "error" in gates.near([x * math.nan], [exact])
    assert gates.standard_normal(torch.randn(100_000, generator=torch.Generator().manual_seed(0))) is None
    assert "moment 1" in gates.standard_normal(x + 0.5)
    assert "moment" in gates.standard_normal(2.0 * x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["everything"],
            "bench 'everything' is unknown; "
            "known: ops, sampling, round, ranks, invert, quality, methods, cut, scaling, fleet, all, plot",
        ),
        (["ops", "--backend", "cuda"], "backend='cuda' is unknown"),
        (["ops", "--threads", "0"], "--threads 0: input should be greater than or equal to 1"),
        (["ops", "--only", "no such case"], "--only 'no such case': in no label; known: solver_step ddim 16x4x64x64;"),
        (["ops", "--csv", "no/such/folder.csv"], "--csv no/such/folder.csv: cannot be written"),
    ],
)
def test_wrong_input(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text and "\n" not in text


def test_without_diffusers(monkeypatch, capsys):
    """Sampling is refused in one line; of the operations only its rows are left out."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("pgraft_fast_benchmarks.command._has_diffusers", lambda: False)
    assert main(["bench", "sampling"]) == 2
    assert "diffusers, which is missing: pip install" in capsys.readouterr().err
    case = next(case for case in bench_ops.cases(SMOKE) if case.case == "ddim")
    outcomes = {row["provider"]: row["gate"] for row in measure(case, SMOKE)}
    assert outcomes == {"ours": "ok", "diffusers": "skipped", "eager": "ok", "copy": "ok"}


def test_without_the_source(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pgraft_fast_benchmarks.command", None)
    assert main(["bench", "ops"]) == 2
    assert "come with the source, not with the package: git clone it" in capsys.readouterr().err


@pytest.mark.faults
def test_an_error_planted_in_the_library_is_red(tmp_path):
    """csrc built anew with a coefficient one percent off: its rows have no times, and the command fails."""
    code = tmp_path / "code"
    for name, home in (("pgraft_fast", "pgraft_fast"), ("pgraft_fast_kernels", "kernels"),
                       ("pgraft_fast_benchmarks", "benchmarks")):  # fmt: skip
        (code / name).parent.mkdir(exist_ok=True)
        (code / name).symlink_to(ROOT / home)
    shutil.copytree(ROOT / "csrc", code / "pgraft_fast_csrc")
    source = code / "pgraft_fast_csrc" / "solver_step.h"
    text = source.read_text()
    assert text.count("float next = u.a * x[i] + u.b * clean;") == 1
    source.write_text(text.replace("u.b * clean;", "1.01f * u.b * clean;"))
    done = subprocess.run(
        [sys.executable, "-m", "pgraft_fast.cli", "bench", "ops", "--smoke", "--only", "ddim 2x4x8x8", "--json", "-"],
        env={**os.environ, "PYTHONPATH": str(code), "PGRAFT_FAST_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = {row["provider"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["ours"]["gate"] == "fail" and rows["ours"]["p50_ms"] is None and "error" in rows["ours"]["note"]
    assert rows["eager"]["gate"] == rows["diffusers"]["gate"] == "ok"
