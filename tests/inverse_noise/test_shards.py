"""Inversion to disk: resumed after a stop, a kill and damage with the same bytes."""

import json

import hostile
import pytest
import torch

from pgraft_fast.errors import CheckpointError, InputError, StoppedError
from pgraft_fast.inverse_noise import invert, invert_shards, open_shards
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow

TOTAL = 50


def data(index):
    return dequantised("train", TOTAL, 0)[index]


def shard(folder, check=lambda: None, **update):
    arguments = {"shard": 16, "identity": {"data": "digits"}, "steps": 3} | update
    lines = []
    shards = invert_shards(load_mlp_flow(), data, TOTAL, folder, check=check, log=lines.append, **arguments)
    return shards, lines


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    shard(folder)
    return contents(folder)


def test_shards_hold_what_invert_finds(tmp_path):
    done = []
    shards, _ = shard(tmp_path, on_shard=done.append)
    assert done == [16, 32, 48, 50] and (shards.total, shards.failed) == (TOTAL, 0)
    whole = invert(load_mlp_flow(), data(torch.arange(TOTAL)), 3, batch_size=16)
    assert torch.allclose(shards.noise(), whole.noise, atol=1e-5)
    assert shards.index().tolist() == list(range(TOTAL))
    assert shards.calls == whole.calls and shards.worst_round_trip < 1e-5


def test_a_stopped_inversion_goes_on_with_the_same_bytes(tmp_path, straight):
    for stop in (1, 12, 20, 37):
        left = [stop]

        def check(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError("stopped")

        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            shard(folder, check)
        with pytest.raises(CheckpointError, match=r"shards; the same inversion again goes on|no inversion"):
            open_shards(folder)
        shard(folder)
        assert contents(folder) == straight


def test_damage_and_left_overs_are_made_anew(tmp_path, straight):
    shard(tmp_path)
    broken = tmp_path / "shard-000001" / "shard.safetensors"
    broken.write_bytes(broken.read_bytes()[:-3] + b"bad")
    (tmp_path / ".tmp-shard-000002").mkdir()
    with pytest.raises(CheckpointError, match="its hash differs"):
        open_shards(tmp_path)
    _, lines = shard(tmp_path)
    assert "damaged, its hash differs from the manifest; it is made anew" in lines[0]
    assert contents(tmp_path) == straight


def test_samples_that_fail_are_counted_and_left_out(tmp_path):
    def holed(index):
        x = data(index)
        x[index % 10 == 3] = float("nan")
        return x

    shards = invert_shards(load_mlp_flow(), holed, TOTAL, tmp_path, shard=16, steps=3)
    assert shards.failed == 5 and shards.noise().shape == (45, 1, 8, 8)
    assert 3 not in shards.index().tolist() and torch.isfinite(shards.noise()).all()


def test_shards_of_an_earlier_version_are_made_anew(tmp_path, straight):
    shard(tmp_path)
    first = tmp_path / "shard-000000"
    (first / "summary.json").rename(first / "told.json")
    hostile.manifest(first)
    with pytest.raises(CheckpointError, match="shard-000000: incomplete"):
        open_shards(tmp_path)
    _, lines = shard(tmp_path)
    assert contents(tmp_path) == straight and lines == [f"{first}: incomplete; it is made anew"]


def test_another_inversion_is_refused(tmp_path):
    shard(tmp_path)
    with pytest.raises(InputError, match=r"steps=4 differs from 3 of the inversion in .*; set it back or use another"):
        shard(tmp_path, steps=4)
    with pytest.raises(InputError, match=r"data='faces' differs from 'digits'"):
        shard(tmp_path, identity={"data": "faces"})
    with pytest.raises(InputError, match="total=0, shard=4: both must be at least 1"):
        invert_shards(load_mlp_flow(), data, 0, tmp_path / "other", shard=4)
    (tmp_path / "plan.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="no inversion"):
        open_shards(tmp_path)
