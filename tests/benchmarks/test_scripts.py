"""What runs outside of the command line: gpu_check, compare, run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgraft_fast import waiting
from pgraft_fast_benchmarks import compare, gpu_check, records, run

ROOT = Path(__file__).parents[2]


def piece(name, code, seconds=20.0, **more):
    return gpu_check.Piece(name, seconds, [sys.executable, "-c", code], **{"gpu": False, **more})


def test_pieces_end_in_their_own_ways(tmp_path, monkeypatch, capsys):
    given = [
        piece("fine", "print('ok')"), piece("wrong", "raise SystemExit(4)"), piece("less", "raise SystemExit(3)"),
        piece("long", "print('begun', flush=True); import time; time.sleep(60)", 1.0),
        piece("gpu", "", gpu=True), piece("module", "", needs=("no_such_module",)),
        piece("program", "", needs=("$no-such-program",)),
        piece("waits", "import os; print(os.environ['OMP_WAIT_POLICY'])"),
        piece("packages", "import pgraft_fast, pgraft_fast_kernels, pgraft_fast_csrc, pgraft_fast_benchmarks"),
    ]  # fmt: skip
    monkeypatch.setattr(gpu_check, "pieces", lambda out: given)
    monkeypatch.setattr(gpu_check, "_has_gpu", lambda: False)
    for name in waiting.NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert gpu_check.main() == 1
    told = json.loads((tmp_path / "out" / "check.json").read_text())
    ends = [one["end"] for one in told["pieces"]]
    assert ends == [
        "done", "failed with status 4", "skipped: a package is missing, see its log",
        "cut off after 1 s; what it wrote stays", "skipped: no CUDA device", "skipped: no_such_module is not installed",
        "skipped: no-such-program is not installed", "done", "done",
    ]  # fmt: skip
    assert (tmp_path / "out" / "fine.log").read_text() == "ok\n"
    assert (tmp_path / "out" / "long.log").read_text() == "begun\n"
    assert (tmp_path / "out" / "waits.log").read_text() == "PASSIVE\n"
    assert "fine: done" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "MINUTES", 0.0)
    assert gpu_check.main() == 0
    told = json.loads((tmp_path / "out" / "check.json").read_text())
    assert {one["end"] for one in told["pieces"]} == {"skipped: the time is up"}


def test_the_limits_fit_into_nine_minutes_in_the_order_of_worth(tmp_path):
    found = gpu_check.pieces(tmp_path)
    assert [one.name for one in found[:4]] == ["versions", "build", "tests", "sanitizer"]
    assert sum(one.seconds for one in found[:5]) <= 60 * gpu_check.MINUTES
    assert all(one.seconds <= 180 for one in found)


def test_a_benchmark_from_a_plain_checkout(tmp_path):
    """Nothing is installed there but what it imports; rows are kept case by case."""
    code = gpu_check.make(tmp_path / "code", ROOT)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "pgraft_fast_benchmarks.run", "ops", "--size", "smoke", "--only", "philox_normal",
             "--csv", str(tmp_path / "rows.csv")],
            env={**os.environ, "PYTHONPATH": str(code)}, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "philox_normal noise 1000 ours:" in done.stdout
    rows = records.read(tmp_path / "rows.csv")
    assert len(rows) == 12 and {row["size"] for row in rows} == {"smoke"}


def test_missing_packages_are_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pgraft_fast_benchmarks.bench_round", None)
    assert run.main(["round"]) == 3
    assert "round: skipped, import of pgraft_fast_benchmarks.bench_round halted" in capsys.readouterr().out


def row(provider, time, gate="ok", case="a"):
    return {"bench": "ops", "op": "o", "case": case, "shape": "2", "provider": provider, "gate": gate, "p50_ms": time}


def test_comparison(capsys):
    base = [row("ours", 2.0), row("ours", 4.0), row("ours", 2.0), row("copy", 1.0), row("copy", 1.0), row("copy", 1.0)]
    head = [row("ours", 1.0), row("copy", 1.0)]
    assert compare.report(base, head, 1.25) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["o", "a", "2", "2", "1", "2.000", "2.000"]
    # A machine twice as slow in head's turns is no loss beside its peers.
    assert compare.report(base, [row("ours", 4.0), row("copy", 2.0)], 1.25) == 1
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["0.500", "1.000"]
    assert compare.report(base, [row("ours", None, "fail")], 1.25) == 1
    assert "red or missing in head" in capsys.readouterr().out
    assert compare.report([row("ours", None, "fail")], head, 1.25) == 0


def test_two_commits_take_turns(tmp_path, capfd):
    """A clone whose head is the tree as it is, against its commit before: the same benchmark from two checkouts."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for name in ("benchmarks", "pgraft_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, clone / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    for message in ("one", "two"):
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
    command = [
        sys.executable,
        str(clone / "benchmarks" / "compare.py"),
        "HEAD~1",
        "--size",
        "smoke",
        "--only",
        "philox",
    ]
    environment = {**os.environ, "PYTHONPATH": str(gpu_check.make(tmp_path / "code", clone))}
    done = subprocess.run([*command, "--turns", "1", "--limit", "100"], env=environment, check=False)
    out, err = capfd.readouterr()
    assert done.returncode == 0, err
    assert "philox_normal noise 1000" in out and "turn 1 of 1: head" in err
    assert (
        subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout.count("\n") == 1
    )
    done = subprocess.run(
        [*command[:2], "no-such-commit"], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("BASE=no-such-commit: fatal: invalid reference")
