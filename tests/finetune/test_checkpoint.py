"""Checkpoints: whole or not at all, damage found, disk full survived."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgraft_fast.errors import CheckpointError, StorageError
from pgraft_fast.files import check_space, read_folder, remove_temporary, to_json, write_file, write_folder
from pgraft_fast.finetune.checkpoint import Checkpoint, load_newest, run_lock, save_checkpoint, tensor_bytes


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


@settings(max_examples=150)
@given(data=st.data())
def test_every_damage_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    save_checkpoint(folder, checkpoint(1, seed=1))
    newest = save_checkpoint(folder, checkpoint(2, seed=2))
    victim = data.draw(st.sampled_from(sorted(newest.iterdir())))
    raw = bytearray(victim.read_bytes())
    match data.draw(st.sampled_from(["flip", "truncate", "empty", "remove"])):
        case "flip":
            position = data.draw(st.integers(0, len(raw) * 8 - 1))
            raw[position // 8] ^= 1 << position % 8
            victim.write_bytes(raw)
        case "truncate":
            victim.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
        case "empty":
            victim.write_bytes(b"")
        case _:
            victim.unlink()
    warnings = []
    loaded = load_newest(folder, warnings.append)
    # White space of the manifest carries no meaning: a flip there may leave everything whole.
    whole = same(loaded, checkpoint(2, seed=2)) and victim.name == "manifest.json"
    assert whole or (same(loaded, checkpoint(1, seed=1)) and warnings)
    shutil.rmtree(folder)


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


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    with pytest.raises(StorageError, match="cannot be written"), run_lock(below):
        pass
    with pytest.raises(StorageError, match="cannot be written"):
        save_checkpoint(below, checkpoint(1))
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(below, b"x")


@pytest.fixture
def small_disk(tmp_path):
    """A 1 MB file system."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk):
    folder = small_disk / "checkpoints"
    before = checkpoint(1, seed=1, size=10_000)
    save_checkpoint(folder, before)
    chooser = random.Random(0)
    for _ in range(12):
        filler = small_disk / "filler"
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(b"x" * max(0, free - chooser.randrange(0, 110_000)))
        with pytest.raises(StorageError, match=r"round-000002: needs .* MB, no space left"):
            save_checkpoint(folder, checkpoint(2, seed=2, size=30_000))
        filler.unlink()
        assert [p.name for p in folder.iterdir()] == ["round-000001"]
        assert same(load_newest(folder, pytest.fail), before)
    save_checkpoint(folder, checkpoint(2, seed=2, size=30_000))
    assert load_newest(folder, pytest.fail).round == 2


def test_space_is_asked_for_beforehand(small_disk):
    check_space(small_disk, 500_000)
    with pytest.raises(StorageError, match=r"needs 2.0 MB free, has 1.0 MB"):
        check_space(small_disk, 2_000_000)


def test_a_file_is_replaced_whole_or_not_at_all(small_disk):
    path = small_disk / "result.json"
    write_file(path, b"one")
    with pytest.raises(StorageError, match="no space left"):
        write_file(path, b"x" * 2_000_000)
    assert path.read_bytes() == b"one"
    assert [p.name for p in Path(small_disk).iterdir()] == ["result.json"]


def test_numbers_that_json_has_not_are_null():
    value = {"a": [1.0, float("nan"), {"b": float("inf")}], "c": (float("-inf"), 2, True, None, "nan")}
    assert json.loads(to_json(value)) == {"a": [1.0, None, {"b": None}], "c": [None, 2, True, None, "nan"]}
