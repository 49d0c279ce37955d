"""Checkpoints: whole or not at all, damage found, disk full survived."""

import json

import pytest
import torch
from disks import small_disk

from pgraft_fast.errors import CheckpointError, StorageError
from pgraft_fast.files import check_space, read_folder, remove_temporary, to_json, to_line, write_file, write_folder
from pgraft_fast.finetune.checkpoint import Checkpoint, History, load_newest, run_lock, save_checkpoint, tensor_bytes


def checkpoint(number, seed=0, size=300):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model": {"w": torch.randn(size, generator=generator), "b": torch.tensor(3)},
        "optimizer": {"0.exp_avg": torch.zeros(2, dtype=torch.float64)},
    }
    return Checkpoint(number, {"history": [1, 2.5], "settings": {"a": None}}, tensors)


def same(a, b):
    return (
        a.round == b.round
        and a.state["history"] == b.state["history"]
        and all(torch.equal(a.tensors[g][n], b.tensors[g][n]) for g in b.tensors for n in b.tensors[g])
    )


def test_round_trip_keeps_two(tmp_path):
    assert load_newest(tmp_path, print) is None
    for number in range(1, 5):
        save_checkpoint(tmp_path, checkpoint(number, seed=number))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-000003", "round-000004"]
    assert same(load_newest(tmp_path, print), checkpoint(4, seed=4))


def test_the_same_tensors_give_the_same_bytes():
    tensors = checkpoint(1).tensors["model"]
    assert tensor_bytes(tensors, "{}") == tensor_bytes(dict(reversed(tensors.items())), "{}")


def test_all_damaged_is_an_error(tmp_path):
    for number in (1, 2):
        (save_checkpoint(tmp_path, checkpoint(number)) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        load_newest(tmp_path, lambda text: None)


def test_a_damaged_round_is_written_again(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1, seed=1))
    (save_checkpoint(tmp_path, checkpoint(2, seed=1)) / "model.safetensors").write_bytes(b"x")
    save_checkpoint(tmp_path, checkpoint(2, seed=2))
    assert same(load_newest(tmp_path, pytest.fail), checkpoint(2, seed=2))


def test_left_overs_are_removed_and_never_read(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / ".tmp-round-000002").mkdir()
    (tmp_path / ".tmp-round-000002" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-result.json").write_bytes(b"half")
    assert load_newest(tmp_path, pytest.fail).round == 1
    remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001"]


def test_names_in_a_manifest_stay_in_the_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "f"
    write_folder(folder, {"a": b"1"})
    (folder / "manifest.json").write_text(json.dumps({"sha256": {"../secret": "0"}}))
    with pytest.raises(CheckpointError):
        read_folder(folder)


def test_lock(tmp_path):
    with run_lock(tmp_path / "run"), pytest.raises(StorageError, match="another process"), run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_lock_that_is_a_link(tmp_path):
    (tmp_path / "mine").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="is a link"), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "x"


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    with pytest.raises(StorageError, match="cannot be written"), run_lock(below):
        pass
    with pytest.raises(StorageError, match="cannot be written"):
        save_checkpoint(below, checkpoint(1))
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(below, b"x")


def test_space_is_asked_for_beforehand(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        check_space(disk, 500_000)
        with pytest.raises(StorageError, match=r"needs 2.0 MB free, has 1.0 MB"):
            check_space(disk, 2_000_000)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "result.json"
        write_file(path, b"one")
        with pytest.raises(StorageError, match="no space left"):
            write_file(path, b"x" * 2_000_000)
        assert path.read_bytes() == b"one"
        assert [p.name for p in disk.iterdir()] == ["result.json"]


def test_numbers_that_json_has_not_are_null():
    value = {"a": [1.0, float("nan"), {"b": float("inf")}], "c": (float("-inf"), 2, True, None, "nan")}
    assert json.loads(to_json(value)) == {"a": [1.0, None, {"b": None}], "c": [None, 2, True, None, "nan"]}


def test_a_history_is_made_json_once(tmp_path):
    history = History()
    for number in range(1, 4):
        history.append({"reward": 0.5 * number, "loss": float("nan")})
        before = history.text()
        save_checkpoint(tmp_path, Checkpoint(number, {"history": history}, {}))
    assert history.text() == before == b"".join(to_line(entry) for entry in history)
    # What stands in the text is not looked at again.
    history[0]["reward"] = 7.0
    assert history.text() == before
    loaded = load_newest(tmp_path, pytest.fail)
    assert loaded.state["history"] == [{"reward": 0.5 * n, "loss": None} for n in (1, 2, 3)]
    assert json.loads((tmp_path / "round-000003" / "state.json").read_text()) == {"round": 3}


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Whose history was a part of its state."""
    save_checkpoint(tmp_path, Checkpoint(1, {"history": [{"reward": 1.0}]}, {}))
    assert load_newest(tmp_path, pytest.fail).state["history"] == [{"reward": 1.0}]


def test_rounds_of_more_than_six_digits(tmp_path):
    for number in (999_999, 1_000_000):
        save_checkpoint(tmp_path, checkpoint(number))
    assert load_newest(tmp_path, pytest.fail).round == 1_000_000


@pytest.mark.parametrize("state", [b"[" * 100_000, b"[1]", b'"x"', b"\xff", b"null"])
def test_a_state_that_is_none(tmp_path, state):
    """Whole by its manifest, and nothing that this package writes."""
    write_folder(tmp_path / "round-000001", {"state.json": state})
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        load_newest(tmp_path, lambda text: None)
