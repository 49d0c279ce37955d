"""The ledger: parts sum to the total, across processes and deaths."""

import json
import time

import pytest
from clock import Clock

from pgraft_fast.errors import CheckpointError, StorageError
from pgraft_fast.finetune import Ledger


def spend(ledger, phase, seconds):
    with ledger.phase(phase):
        ledger._clock.now += seconds


def test_parts_sum_to_the_total(tmp_path):
    clock = Clock()
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=clock)
    with ledger.phase("sample"):
        clock.now += 50.0
    with ledger.phase("train"):
        clock.now += 20.0
        with ledger.phase("save"):
            clock.now += 7.0
        clock.now += 10.0
    ledger.add_calls(7)
    clock.now += 1.0
    summary = ledger.summary()
    spent = {phase: seconds for phase, seconds in summary["seconds"].items() if seconds}
    assert spent == {"start": 1.0, "sample": 50.0, "train": 30.0, "save": 7.0}
    assert summary["total_seconds"] == 88.0
    assert summary["device_hours"] == pytest.approx(88.0 / 3600, abs=1e-9)
    assert summary["model_calls"] == 7


def test_the_real_clock(tmp_path):
    began = time.perf_counter()
    ledger = Ledger(tmp_path / "ledger.jsonl")
    made = time.perf_counter()
    with ledger.phase("sample"):
        time.sleep(0.01)
    query_time = time.perf_counter()
    summary = ledger.summary()
    # Readings of one clock, one inside the other.
    assert query_time - made <= summary["total_seconds"] <= time.perf_counter() - began
    assert 0.01 <= summary["seconds"]["sample"] <= summary["total_seconds"]
    assert sum(summary["seconds"].values()) == pytest.approx(summary["total_seconds"], abs=1e-5)


def test_a_finished_process_is_carried_over(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, Clock())
    spend(first, "sample", 3.0)
    first.add_calls(10)
    first.commit(1)
    spend(first, "evaluate", 2.0)
    first.close(finished=True)
    second = Ledger(path, Clock())
    assert (second.seconds["sample"], second.seconds["evaluate"], second.seconds["lost"]) == (3.0, 2.0, 0.0)
    assert second.model_calls == 10
    assert second.elapsed == 5.0


@pytest.mark.parametrize("torn", ["", '{"phase": "tra'])
def test_unfinished_work_is_lost_work(tmp_path, torn):
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, Clock())
    spend(first, "sample", 2.0)
    first.commit(1)
    spend(first, "train", 4.0)
    first.add_calls(5)
    first.close(finished=False)
    with path.open("a") as file:
        file.write(torn)
    second = Ledger(path)
    assert second.seconds["lost"] == 4.0 and second.seconds["sample"] == 2.0
    assert second.seconds["train"] == 0.0
    assert second.model_calls == 5


def test_long_phases_are_noted_while_they_run(tmp_path):
    path, clock = tmp_path / "ledger.jsonl", Clock()
    ledger = Ledger(path, clock)
    ledger.enter("train")
    for _ in range(3):
        clock.now += 1.5
        ledger.add_calls(2)
    clock.now += 0.5
    ledger.add_calls(7)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(r["calls"] for r in records if r["phase"] == "train") == 6


def test_unknown_phase_and_bad_path(tmp_path):
    with pytest.raises(ValueError, match="known: start, sample"):
        Ledger().enter("lunch")
    with pytest.raises(StorageError, match="cannot be written"):
        Ledger(tmp_path / "no" / "ledger.jsonl")


def test_device_hours_count_every_rank(tmp_path):
    """Of a run that went on with another number of ranks."""
    path, clock = tmp_path / "ledger.jsonl", Clock()
    first = Ledger(path, clock, ranks=4)
    spend(first, "sample", 10.0)
    first.commit(1)
    assert first.device_seconds == 40.0
    first.close(finished=False)
    second = Ledger(path, Clock(), ranks=2)
    assert (second.elapsed, second.device_seconds) == (10.0, 40.0)
    spend(second, "sample", 5.0)
    assert (second.elapsed, second.device_seconds) == (15.0, 50.0)
    assert second.summary()["device_hours"] == pytest.approx(50.0 / 3600, abs=1e-9)
    assert second.summary()["ranks"] == 2
    second.close(finished=True)
    alone = Ledger(path, Clock())
    spend(alone, "save", 1.0)
    assert alone.device_seconds == 51.0 and "ranks" not in alone.summary()


@pytest.mark.parametrize("torn", ["", '{"phase": "tra'])
def test_energy_is_that_of_all_boards(tmp_path, torn):
    path, board = tmp_path / "ledger.jsonl", Clock()
    ledger = Ledger(path, Clock(), ranks=3)
    ledger.measure(board)
    board.now += 7.0
    # Between two rounds the others are taken to need as much.
    assert ledger.joules_now() == 21.0
    assert ledger.take_joules() == 7.0
    ledger.add_joules([7.0, 5.0, 6.0])
    assert ledger.joules == 18.0 and ledger.joules_now() == 18.0
    board.now += 1.0
    assert ledger.joules_now() == 21.0
    ledger.commit(1)
    ledger.close(finished=True)
    with path.open("a") as file:
        file.write(torn)
    again = Ledger(path, Clock(), ranks=2)
    assert again.joules == 19.0
    again.close(finished=True)
    # What follows a torn line is read.
    assert Ledger(path, Clock())._ranks_before == 2


def test_what_follows_a_torn_line_is_read(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"round": 1}\n{"phase": "tra')
    second = Ledger(path, Clock())
    spend(second, "sample", 3.0)
    second.commit(2)
    second.close(finished=True)
    third = Ledger(path, Clock())
    assert third.seconds["sample"] == 3.0 and third.seconds["lost"] == 0.0
    phases = [json.loads(line).get("phase") for line in path.read_text().splitlines()[2:4]]
    assert phases == ["start", "sample"]


def test_a_ledger_that_leads_elsewhere_is_not_written(tmp_path):
    (tmp_path / "mine").write_text("x\n")
    (tmp_path / "ledger.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="cannot be written"):
        Ledger(tmp_path / "ledger.jsonl")
    assert (tmp_path / "mine").read_text() == "x\n"


@pytest.mark.parametrize(
    "record",
    ['{"phase": "sample"}', '{"phase": "nothing", "seconds": 1, "calls": 2}', '{"phase": [], "seconds": 1}', "[1]"],
)
def test_records_that_are_none(tmp_path, record):
    (tmp_path / "ledger.jsonl").write_text(f"{record}\n")
    with pytest.raises(CheckpointError, match="damaged, or of another version"):
        Ledger(tmp_path / "ledger.jsonl")
