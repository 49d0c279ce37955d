"""The timed trial: the faster way is taken, once."""

import json
from pathlib import Path

import pytest
import torch
from clock import Clock

from pgraft_fast.sampling.choice import choose

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Read by the trial; each way turns it by its own length."""
    clock = Clock()
    monkeypatch.setattr("pgraft_fast.sampling.timing.time", clock)
    return clock


class Ways:
    """Three ways of different length; counts their runs."""

    def __init__(self, clock):
        self.clock = clock
        self.runs = []
        self.ways = {
            "slow": self.way("slow", 0.008),
            "fast": self.way("fast", 0.0),
            "medium": self.way("medium", 0.004),
        }

    def way(self, name, seconds):
        def run():
            self.runs.append(name)
            self.clock.now += seconds

        return run


def failing(error):
    def run():
        raise error

    return run


def test_the_faster_one_is_taken_and_remembered(tmp_path, caplog, clock):
    store, tried = tmp_path / "below" / "choices.json", Ways(clock)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        assert choose("a question", tried.ways, CPU, store) == "fast"
    # Once to warm up, three times on the clock.
    assert sorted(tried.runs) == sorted(["slow", "fast", "medium"] * 4)
    assert json.loads(store.read_text()) == {"a question": "fast"}
    assert "a question: fast is taken (slow " in caplog.text
    tried.runs.clear()
    assert choose("a question", tried.ways, CPU, store) == "fast" and tried.runs == []
    assert choose("another question", tried.ways, CPU, store) == "fast" and len(tried.runs) == 12
    assert set(json.loads(store.read_text())) == {"a question", "another question"}
    assert sorted(path.name for path in store.parent.iterdir() if path.suffix != ".lock") == ["choices.json"]


def test_one_way_needs_no_trial(tmp_path, clock):
    tried = Ways(clock)
    assert choose("what", {"slow": tried.ways["slow"]}, CPU, tmp_path / "choices.json") == "slow"
    assert tried.runs == [] and list(tmp_path.iterdir()) == []


def test_the_answer_is_among_those_asked_for(tmp_path, clock):
    store, tried = tmp_path / "choices.json", Ways(clock)
    assert choose("what", tried.ways, CPU, store) == "fast"
    del tried.ways["fast"]
    assert choose("what", tried.ways, CPU, store) == "medium"


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"fast"', "null", '{"what": ["slow"]}', '{"what": {"slow": 1}}'])
def test_a_corrupt_store_is_written_anew(tmp_path, text, clock):
    store = tmp_path / "choices.json"
    store.write_text(text)
    for _ in range(2):
        assert choose("what", Ways(clock).ways, CPU, store) == "fast"
    assert json.loads(store.read_text()) == {"what": "fast"}


def test_bytes_that_are_no_text(tmp_path, clock):
    store = tmp_path / "choices.json"
    store.write_bytes(b"\xff\xfe\x00{")
    assert choose("what", Ways(clock).ways, CPU, store) == "fast"
    assert json.loads(store.read_text()) == {"what": "fast"}


def places_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    return [tmp_path / "file" / "choices.json", tmp_path / "folder.json", Path("/proc/nothing/choices.json")]


@pytest.mark.parametrize("place", range(3))
def test_a_store_that_cannot_be_written(tmp_path, place, caplog, clock):
    store, tried = places_that_cannot_be_written(tmp_path)[place], Ways(clock)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level("INFO", logger="pgraft_fast"):
        assert choose("what", tried.ways, CPU, store) == "fast"
    assert len(tried.runs) == 12 and "the trial will be repeated" in caplog.text
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".lock"] == before


def test_the_default_store_is_in_the_cache_folder(tmp_path, monkeypatch, clock):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    assert choose("what", Ways(clock).ways, CPU) == "fast"
    assert json.loads((tmp_path / "choices.json").read_text()) == {"what": "fast"}


@pytest.mark.parametrize("error", [
    RuntimeError("no kernel\nfor this"), RuntimeError(""), NotImplementedError("not here"),
    torch.OutOfMemoryError("full"), ValueError("a head is too wide"), ImportError("no xformers"), OSError("no gcc"),
])  # fmt: skip
def test_a_way_that_raises_is_left_out(tmp_path, error, caplog, clock):
    ways = {"broken": failing(error), **Ways(clock).ways}
    assert choose("what", ways, CPU, tmp_path / "choices.json") == "fast"
    reason = str(error).split("\n")[0] or type(error).__name__
    assert f"what: broken is left out: {reason}" in caplog.text


def test_no_way_runs(tmp_path):
    error = ValueError("the model is broken")
    with pytest.raises(RuntimeError, match="what: none of one, two runs") as raised:
        choose("what", {"one": failing(RuntimeError("no")), "two": failing(error)}, CPU, tmp_path / "choices.json")
    assert raised.value.__cause__ is error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        choose("what", {"one": failing(KeyboardInterrupt()), "two": print}, CPU, tmp_path / "choices.json")


@pytest.mark.parametrize("answers", [lambda x: x, lambda x: [x, None, (x,)]])
def test_a_way_with_another_answer_is_left_out(tmp_path, caplog, clock, answers):
    x = torch.ones(4)
    values = {"first": x, "rounded": x + 1e-6, "wrong": x + 0.1, "nan": torch.full((4,), torch.nan)}
    seconds = {"first": 3.0, "rounded": 2.0, "wrong": 1.0, "nan": 1.0}

    def way(name):
        def run():
            clock.now += seconds[name]
            return answers(values[name])

        return run

    ways = {name: way(name) for name in values}
    assert choose("what", ways, CPU, tmp_path / "choices.json", allowed=1e-4) == "rounded"
    assert "wrong is left out: its answer is off by 0.1" in caplog.text
    assert "nan is left out: its answer is off by inf" in caplog.text


def test_a_way_with_fewer_answers_is_left_out(tmp_path, clock):
    ways = {"first": lambda: [torch.ones(1)] * 2, "short": lambda: [torch.ones(1)]}
    assert choose("what", ways, CPU, tmp_path / "choices.json", allowed=1e-4) == "first"
