"""What runs outside of the command line: gpu_check, compare, run."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgraft_fast import extras, waiting
from pgraft_fast_benchmarks import compare, gpu_check, records, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def piece(name, code, seconds=20.0, **more):
    return gpu_check.Piece(name, seconds, [sys.executable, "-c", code], **{"gpu": False, **more})


def test_pieces_end_in_their_own_ways(tmp_path, monkeypatch, capsys):
    pieces = [
        piece("fine", "print('ok')"), piece("wrong", "raise SystemExit(4)"), piece("less", "raise SystemExit(3)"),
        piece("long", "print('begun', flush=True); import time; time.sleep(60)", 1.0),
        piece("gpu", "", gpu=True), piece("module", "", needs=("no_such_module",)),
        piece("program", "", needs=("$no-such-program",)),
        piece("waits", "import os; print(os.environ['OMP_WAIT_POLICY'])"),
        piece("packages", "import pgraft_fast, pgraft_fast_kernels, pgraft_fast_csrc, pgraft_fast_benchmarks"),
    ]  # fmt: skip
    status, log = checked(pieces, tmp_path, monkeypatch)
    assert status == 1
    assert ends(tmp_path) == [
        "done", "failed with status 4", "skipped: a package is missing, see the log",
        "cut off after 1 s; what it wrote stays", "skipped: no CUDA device", "skipped: no_such_module is not installed",
        "skipped: no-such-program is not installed", "done", "done",
    ]  # fmt: skip
    for lines in ("== fine\nok\n", "== long\nbegun\n", "== waits\nPASSIVE\n"):
        assert lines in log
    output = capsys.readouterr().out
    assert "fine: done" in output and "pip download" in output and "no_such_module" in output
    assert "pip install --no-index --find-links wheels no_such_module" in output
    # A table last.
    assert [line.split()[0] for line in output.rstrip().splitlines()[-9:]] == [entry.name for entry in pieces]
    monkeypatch.setattr(gpu_check, "MINUTES_OF_ALL", 0.0)
    assert checked(pieces, tmp_path, monkeypatch)[0] == 0
    assert set(ends(tmp_path)) == {"skipped: the time is up"}


def test_what_is_missing_is_brought_without_another_torch(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "_has", lambda name: False)
    gpu_check._tell_missing(
        [gpu_check.Piece("a", 1, [], ("sklearn", "peft")), gpu_check.Piece("b", 1, [], ("peft", "$gdb"))]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a is skipped: no sklearn, no peft here", "b is skipped: no peft, no gdb here"]
    _, *commands = lines[2].replace("to bring them: ", "; ").split("; ")
    version = f"--python-version {sys.version_info.major}.{sys.version_info.minor}"
    assert commands == [
        f"pip download --only-binary=:all: {version} -d wheels scikit-learn",
        f"pip download --only-binary=:all: {version} -d wheels --no-deps peft accelerate",
        "here: pip install --no-index --find-links wheels scikit-learn peft",
    ]


def checked(pieces, folder, monkeypatch):
    """The exit status, and all that the pieces printed."""
    monkeypatch.setattr(gpu_check, "pieces", lambda part, out, gpu: pieces)
    monkeypatch.setattr(gpu_check, "_has_gpu", lambda: False)
    for name in waiting.NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUT", str(folder / "out"))
    return gpu_check.main(), (folder / "out" / "check.log").read_text()


def ends(folder):
    return [entry["end"] for entry in json.loads((folder / "out" / "check.json").read_text())["pieces"]]


def test_a_cut_off_piece_is_a_failure_and_its_children_end_with_it(tmp_path, monkeypatch):
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(alive)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert checked([piece("parent", code, 1.0), piece("next", "import time; time.sleep(5)")], tmp_path, monkeypatch)[0]
    assert not alive.exists()


def test_a_check_that_is_stopped_stops_its_piece(tmp_path):
    environment = {**os.environ, "PART": "tests", "OUT": str(tmp_path)}
    check = subprocess.Popen([sys.executable, gpu_check.__file__], env=environment, stderr=subprocess.DEVNULL)
    while not writers(tmp_path / "check.log") - {check.pid}:
        assert check.poll() is None
    check.terminate()
    assert check.wait() != 0
    assert not writers(tmp_path / "check.log")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_stopped_while_a_piece_starts_stops_it(tmp_path, monkeypatch, number):
    started = []

    class Stopped(subprocess.Popen):
        """The signal comes when the process is there and its caller does not know it yet."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if options.get("start_new_session"):
                started.append(self)
                signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    # What starts the tests may have Ctrl-C ignored.
    interrupt, before = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checked([piece("sleeps", "import time; time.sleep(600)")], tmp_path, monkeypatch)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert signal.getsignal(signal.SIGINT) is interrupt


def writers(file):
    """Processes that have it open."""
    pids = set()
    for place in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if place.samefile(file):
                pids.add(int(place.parts[2]))
    return pids


def test_packages_on_the_path_are_still_there(tmp_path, monkeypatch):
    (tmp_path / "carried_along.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert checked([piece("carries", "import carried_along")], tmp_path, monkeypatch)[0] == 0


def test_an_unknown_part_is_told(monkeypatch, capsys):
    monkeypatch.setenv("PART", "everything")
    assert gpu_check.main() == 2
    assert "PART='everything' is unknown; known: tests, ops" in capsys.readouterr().err


@pytest.mark.parametrize("part", gpu_check.PARTS)
def test_the_limits_of_a_part_fit_into_its_minutes(tmp_path, part):
    pieces = gpu_check.pieces(part, tmp_path)
    assert sum(entry.seconds for entry in pieces) <= 60 * gpu_check.MINUTES
    everything = gpu_check.pieces("all", tmp_path)
    assert [entry.name for entry in everything if entry in pieces] == [entry.name for entry in pieces]


# What a machine with torch may be without.
_OPTIONAL = {
    *extras.CLI, "pydantic", "rich", "diffusers", "greenlet", "peft", "transformers", "pynvml",
    "rdkit", "qm9pack", "pypdfium2", "torch_fidelity", "tblite",
}  # fmt: skip
_WITHOUT = """
import importlib.machinery, os, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in os.environ["WITHOUT"].split() else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.mark.faults
@pytest.mark.parametrize("part", gpu_check.PARTS)
def test_pieces_need_nothing_but_what_they_say(tmp_path, monkeypatch, part):
    """At tiny sizes on the host."""
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT)
    pieces = [entry for entry in gpu_check.pieces(part, tmp_path, gpu=False) if not entry.gpu]
    for entry in pieces:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("WITHOUT", " ".join(_OPTIONAL.difference(entry.needs)))
        status, log = checked([entry], tmp_path, monkeypatch)
        assert (status, ends(tmp_path)) == (0, ["done"]), log[-2000:]


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


def test_a_profile_names_the_operations_of_a_round(capsys):
    from pgraft_fast_benchmarks import profile_round

    assert profile_round.main(["--prompts", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "== digits, eager" and lines[-1].endswith("all")
    assert any("linear" in line for line in lines)
