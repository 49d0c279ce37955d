"""The CSV of a device: appended whole, read back as written, the newest run found."""

import subprocess
import sys

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast_benchmarks import records

HERE = {
    "run": "2026-01-01T00:00:00Z", "size": "full", "device": "A CPU (AVX512)", "driver": None, "threads": 2,
    "backend": "by device", "commit": "c" * 40, "dirty": False, "versions": {"python": "3.11", "torch": "2.13.0+cpu"},
}  # fmt: skip


def result(run, bench="ops", **more):
    row = {"op": "o", "case": "a, b", "shape": [4, 8], "provider": "ours", "gate": "ok", "p50_ms": 1.5, "note": None}
    return {**HERE, "run": run, "bench": bench, "rows": [{**row, **more}, {**row, "provider": "copy", "gate": "fail"}]}


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "a.csv"
    records.append(path, records.rows_of(result("1")))
    records.append(path, records.rows_of(result("2", extra=True)))
    rows = records.read(path)
    assert len(rows) == 4
    assert rows[2] == {
        "run": 2, "bench": "ops", "size": "full", "op": "o", "case": "a, b", "shape": "4x8", "provider": "ours",
        "gate": "ok", "p50_ms": 1.5, "extra": True, "device": "A CPU (AVX512)", "threads": 2, "backend": "by device",
        "python": 3.11, "torch": "2.13.0+cpu", "commit": "c" * 40, "dirty": False,
    }  # fmt: skip
    header = path.read_text().splitlines()[0].split(",")
    assert header[:3] == ["run", "bench", "size"] and header[-2:] == ["commit", "dirty"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


def test_processes_that_append_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path / "cache"))
    code = (
        "import sys; from pathlib import Path; from pgraft_fast_benchmarks import records\n"
        "for n in range(25): records.append(Path(sys.argv[1]), [{'bench': 'ops', 'case': n, 'provider': sys.argv[2]}])"
    )
    file = tmp_path / "rows.csv"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert {(row["provider"], row["case"]) for row in records.read(file)} == {
        (w, n) for w in range(4) for n in range(25)
    }
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == ["rows.csv"]


def test_the_newest_run_of_each_case(tmp_path):
    old, new = result("2026-01-01T00:00:00Z"), result("2026-01-02T00:00:00Z", p50_ms=2.5)
    other = result("2026-01-01T00:00:00Z", case="c")
    quick = {**result("2026-01-03T00:00:00Z"), "size": "quick"}
    rows = [row for run in (old, other, new, quick) for row in records.rows_of(run)]
    newest = records.newest(rows, "ops")
    assert [(row["case"], row["p50_ms"]) for row in newest if row["provider"] == "ours"] == [("c", 1.5), ("a, b", 2.5)]
    assert [row["run"] for row in records.newest(rows, "ops", "quick")] == ["2026-01-03T00:00:00Z"] * 2
    assert records.newest(rows, "sampling") == []


def test_names_of_files(tmp_path):
    assert records.file_of("AMD EPYC (AVX512)", tmp_path) == tmp_path / "amd-epyc-avx512.csv"
    assert records.file_of("NVIDIA H200", tmp_path).name == "nvidia-h200.csv"


def test_what_is_no_table(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"b\.csv: not a table of this benchmark, it has no columns bench, case and"):
        records.append(path, records.rows_of(result("1")))
    assert path.read_text() == "x,y\n1,2\n"
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read as a table"):
        records.read(tmp_path / "nowhere.csv")


def test_every_row_of_the_results_is_whole():
    rows = records.all_rows()
    for row in rows:
        assert {"run", "bench", "size", "case", "provider", "gate", "device", "threads", "torch"} <= set(row), row
        assert row["gate"] != "ok" or row["bench"] in ("quality", "methods", "cut") or row["p50_ms"] > 0
